. /in/toolchain/env.sh

tar xf /in/e2fsprogs --strip-components=1
./configure --host="$TARGET" --build="$(uname -m)-build-linux-gnu" BUILD_CC=gcc --prefix=/usr \
    --disable-nls --disable-rpath --disable-debugfs --disable-imager --disable-defrag --disable-fsck \
    --disable-e2initrd-helper --disable-uuidd --disable-fuse2fs --disable-tdb --disable-testio-debug \
    --without-libarchive --without-pthread \
    --with-crond-dir=no --with-udev-rules-dir=no --with-systemd-unit-dir=no
# Their own libraries are small and used by nothing else: linked in.
make libs
make -C misc mke2fs tune2fs
make -C e2fsck e2fsck
make -C resize resize2fs

install -D -m 755 -t /out/usr/sbin misc/mke2fs misc/tune2fs e2fsck/e2fsck resize/resize2fs
ln -s mke2fs /out/usr/sbin/mkfs.ext4
ln -s e2fsck /out/usr/sbin/fsck.ext4
