. /in/toolchain/env.sh

tar xf /in/libffi --strip-components=1
# This tarball has no generated configure script, and ten files need neither autoconf nor libtool.
case $ARCH in
    x86_64) dir=src/x86 target=X86_64 machine="ffi64.c ffiw64.c unix64.S win64.S" ;;
    aarch64) dir=src/aarch64 target=AARCH64 machine="ffi.c sysv.S" ;;
esac
cp /in/recipe/fficonfig.h include/
cp "$dir/ffitarget.h" include/
sed -e "s/@VERSION@/3.4.8/; s/@TARGET@/$target/; s/@HAVE_LONG_DOUBLE@/1/; s/@FFI_EXEC_TRAMPOLINE_TABLE@/0/" \
    include/ffi.h.in >include/ffi.h
if grep -n '@[A-Z_]*@' include/ffi.h; then
    echo "libffi: ffi.h.in has a placeholder that build.sh does not know" >&2
    exit 1
fi
sources="src/prep_cif.c src/types.c src/raw_api.c src/java_raw_api.c src/closures.c src/tramp.c"
for file in $machine; do
    sources="$sources $dir/$file"
done
flags="-DHAVE_CONFIG_H -D$target -Iinclude -Isrc"
$CC $flags -DGENERATE_LIBFFI_MAP -E -P -x assembler-with-cpp libffi.map.in >libffi.map
$CC $CFLAGS $flags -fPIC -shared -fno-strict-aliasing -Wl,-soname,libffi.so.8,--version-script,libffi.map \
    -o libffi.so.8 $sources

install -D -m 755 libffi.so.8 /out/usr/lib/libffi.so.8
ln -s libffi.so.8 /out/usr/lib/libffi.so
install -D -m 644 -t /out/usr/include include/ffi.h include/ffitarget.h
