. /in/toolchain/env.sh

tar xf /in/cpython --strip-components=1

# The build date goes into sys.version.
sed -i '1i #define DATE "Jan  1 1980"\n#define TIME "00:00:00"' Modules/getbuildinfo.c
# Byte code is compiled below: once, not for three levels of optimisation, and without time stamps.
sed -i '/^\t-PYTHONPATH=\$(DESTDIR)\$(LIBDEST) \$(RUNSHARED)/,/[^\\]$/d' Makefile.pre.in

# musl gives threads 128 KiB of stack unless the program's header asks for more; the interpreter needs about 1 MiB.
# PKG_CONFIG is off, so configure gets the place of each library by hand. The last lines answer what configure would
# otherwise try out on this machine's kernel and /dev.
./configure --prefix=/usr OPT=-DNDEBUG LDFLAGS_NODIST="-Wl,-z,stack-size=1048576" \
    --with-openssl=/in/openssl/usr --with-openssl-rpath=no --with-pkg-config=no \
    --without-ensurepip --without-static-libpython --disable-test-modules --without-readline --with-dbmliborder= \
    LIBFFI_CFLAGS=-I/in/libffi/usr/include LIBFFI_LIBS="-L/in/libffi/usr/lib -lffi" \
    LIBSQLITE3_CFLAGS=-I/in/sqlite/usr/include LIBSQLITE3_LIBS="-L/in/sqlite/usr/lib -lsqlite3" \
    ZLIB_CFLAGS=-I/in/zlib/usr/include ZLIB_LIBS="-L/in/zlib/usr/lib -lz" \
    py_cv_module__tkinter=n/a py_cv_module__curses=n/a py_cv_module__curses_panel=n/a py_cv_module__bz2=n/a \
    py_cv_module__lzma=n/a py_cv_module__uuid=n/a py_cv_module__dbm=n/a py_cv_module__gdbm=n/a \
    ac_cv_file__dev_ptmx=yes ac_cv_file__dev_ptc=no ac_cv_buggy_getaddrinfo=no \
    ac_cv_posix_semaphores_enabled=yes ac_cv_broken_sem_getvalue=no
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

# Unchecked byte code: valid whatever the source's time stamp says, on a root that nobody can write. Its bytes depend on
# what the compiling process has loaded and how: so one process in sorted order, fixed hash seed (which -E would
# ignore), and the installed interpreter, whose library has no byte code yet (unlike the build tree's). -B and -f keep
# out what imports would leave behind on the way: byte code with time stamps.
find . -name __pycache__ -prune -exec rm -r {} +
env "$run" PYTHONHASHSEED=0 /out/usr/bin/python3.13 -B -m compileall -f -q -j 1 --invalidation-mode unchecked-hash \
    -s /out -p / /out/usr/lib/python3.13
