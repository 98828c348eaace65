. /in/toolchain/env.sh

# LLVM's unwinder, whose source comes with the toolchain.
source=/in/toolchain/lib/libunwind
flags="$CFLAGS -fPIC -I$source/include -DNDEBUG -D_LIBUNWIND_IS_NATIVE_ONLY -funwind-tables"
$CC $flags -std=c++17 -fno-exceptions -fno-rtti -x c++ -c "$source/src/libunwind.cpp"
$CC $flags -std=c99 -fexceptions -c "$source/src/UnwindLevel1.c" "$source/src/UnwindLevel1-gcc-ext.c"
$CC $flags -c "$source/src/UnwindRegistersRestore.S" "$source/src/UnwindRegistersSave.S"
$CC -shared -Wl,-soname,libgcc_s.so.1 -o libgcc_s.so.1 ./*.o
install -D -m 755 libgcc_s.so.1 /out/usr/lib/libgcc_s.so.1
