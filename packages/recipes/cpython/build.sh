. /in/toolchain/env.sh

tar xf /in/cpython --strip-components=1

# The build date goes into sys.version.
sed -i '1i #define DATE "Jan  1 1980"\n#define TIME "00:00:00"' Modules/getbuildinfo.c
# Byte code is compiled below: once, not for three levels of optimisation, and without time stamps.
sed -i '/^\t-PYTHONPATH=\$(DESTDIR)\$(LIBDEST) \$(RUNSHARED)/,/[^\\]$/d' Makefile.pre.in

# musl gives threads 128 KiB of stack unless the program's header asks for more; the interpreter needs about 1 MiB.
# PKG_CONFIG is off, so configure gets the place of each library by hand.
./configure --prefix=/usr OPT=-DNDEBUG LDFLAGS_NODIST="-Wl,-z,stack-size=1048576" \
    --with-openssl=/in/openssl/usr --with-openssl-rpath=no --with-pkg-config=no \
    --without-ensurepip --without-static-libpython --disable-test-modules --without-readline --with-dbmliborder= \
    LIBFFI_CFLAGS=-I/in/libffi/usr/include LIBFFI_LIBS="-L/in/libffi/usr/lib -lffi" \
    LIBSQLITE3_CFLAGS=-I/in/sqlite/usr/include LIBSQLITE3_LIBS="-L/in/sqlite/usr/lib -lsqlite3" \
    ZLIB_CFLAGS=-I/in/zlib/usr/include ZLIB_LIBS="-L/in/zlib/usr/lib -lz" \
    py_cv_module__tkinter=n/a py_cv_module__curses=n/a py_cv_module__curses_panel=n/a py_cv_module__bz2=n/a \
    py_cv_module__lzma=n/a py_cv_module__uuid=n/a py_cv_module__dbm=n/a py_cv_module__gdbm=n/a
# Only the new interpreter may see these libraries: the host's tools would pick up musl's ones under the same names.
run="LD_LIBRARY_PATH=/in/zlib/usr/lib:/in/libffi/usr/lib:/in/openssl/usr/lib:/in/sqlite/usr/lib"
make RUNSHARED="$run"
make install DESTDIR=/out RUNSHARED="$run"

# A module that configure leaves out is no error to make; here it is.
env "$run" ./python -E -c 'import _ctypes, _decimal, _hashlib, _sqlite3, _ssl, pyexpat, zlib'

cd /out/usr
rm -r share lib/pkgconfig bin/idle3* bin/pydoc3* bin/python3*-config
cd lib/python3.13
rm -rf config-3.13-* ensurepip idlelib pydoc_data test tkinter turtle.py turtledemo __phello__ lib2to3
find . -depth \( -name test -o -name tests -o -name idle_test \) -type d -exec rm -r {} +
find . -name '*.exe' -o -name '*.bat' -o -name '*.ps1' | xargs -r rm

# Unchecked byte code: valid whatever the source's time stamp says, on a root that nobody can write. One process, in
# sorted order, fixed hash seed, all of it anew: byte code depends on the compiler's state.
env "$run" PYTHONHASHSEED=0 /build/python -E -B -m compileall -f -q -j 1 --invalidation-mode unchecked-hash \
    -s /out -p / -x 'bad_coding|badsyntax' /out/usr/lib/python3.13
