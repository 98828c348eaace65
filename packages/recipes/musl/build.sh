. /in/toolchain/env.sh

tar xf /in/musl --strip-components=1
# The loader's usual place is /lib; with a merged /usr that is the same directory, and a relative link holds in both.
./configure --prefix=/usr --syslibdir=/usr/lib --target="$TARGET" LIBCC=
# Upstream gives the library no soname; the loader knows it by name, tools that check images want to read it.
make LDFLAGS="-Wl,-soname,libc.so"
make install DESTDIR=/out LDFLAGS="-Wl,-soname,libc.so"
ln -sf libc.so "/out/usr/lib/ld-musl-$ARCH.so.1"
rm -rf /out/usr/bin
