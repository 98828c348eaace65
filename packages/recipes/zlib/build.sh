. /in/toolchain/env.sh

tar xf /in/zlib --strip-components=1
CHOST=$TARGET CFLAGS="$CFLAGS -fPIC" ./configure --prefix=/usr --shared
make libz.so.1.3.1
install -D -m 755 libz.so.1.3.1 /out/usr/lib/libz.so.1.3.1
ln -s libz.so.1.3.1 /out/usr/lib/libz.so.1
ln -s libz.so.1.3.1 /out/usr/lib/libz.so
install -D -m 644 -t /out/usr/include zlib.h zconf.h
