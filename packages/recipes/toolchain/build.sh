# The compiler is the clang, lld and ar inside the Zig distribution, driven directly (`zig clang`, `zig ld.lld`,
# `zig ar`): one static binary pinned by hash, so the host's compiler never touches userland. Zig's own `cc` front end
# is left aside for C: it brings its own libc, default flags and cache, while here every program uses the one musl that
# the recipe `musl` builds. Only C++ goes through `zig c++`, which carries libc++.

target=${MIXOS_TARGET:-x86_64-linux-musl}
arch=${target%%-*}
case $arch in
    x86_64) kernel_headers=x86-linux-any openssl_target=linux-x86_64 ;;
    aarch64) kernel_headers=aarch64-linux-any openssl_target=linux-aarch64 ;;
    *) echo "toolchain: no mapping for the target $target" >&2; exit 1 ;;
esac

python3 -m zipfile -e /in/ziglang /build/wheel
cd /build/wheel/ziglang

# libc sources and headers of a hundred other systems are two thirds of the files: keep what this target can use.
mkdir -p /out/bin /out/lib/libc/include
cp zig LICENSE /out/
chmod 755 /out/zig
cp -R lib/include lib/std lib/compiler_rt lib/compiler_rt.zig lib/compiler lib/c lib/c.zig lib/zig.h \
    lib/libcxx lib/libcxxabi lib/libunwind /out/lib/
cp -R lib/libc/musl /out/lib/libc/
for headers in any-linux-any generic-musl "$kernel_headers" "$arch-linux-musl"; do
    cp -R "lib/libc/include/$headers" /out/lib/libc/include/
done

# What clang looks for in its resource directory: the compiler's run-time library and the two objects around a link.
# Zig's version of that library also defines memcpy, libm and the stack protector's hooks. A link asks it before libc,
# so it must offer only what libc does not have.
runtime=/out/lib/lib/$arch-unknown-linux-musl
mkdir -p "$runtime"
in_libc='memcpy|memset|memmove|memcmp|bcmp|ssp|ceil|cos|exp|exp2|fabs|floor|fma|fmax|fmin|fmod|log|log10|log2'
in_libc="$in_libc|round|sin|sincos|sqrt|tan|trunc"
sed -E "/compiler_rt\/($in_libc)\.zig/d" lib/compiler_rt.zig >lib/builtins.zig
(cd lib && /out/zig build-obj --zig-lib-dir /out/lib --name compiler_rt -target "$target" -mcpu baseline \
    -O ReleaseFast -fPIC -fstrip -ffunction-sections --cache-dir /build/cache --global-cache-dir /build/cache \
    -femit-bin=/build/builtins.o builtins.zig)
/out/zig ar crD "$runtime/libclang_rt.builtins.a" /build/builtins.o
cat >/build/crtbegin.c <<'EOF'
/* C++ and atexit handlers name their module by the address of this symbol; init_array does the rest. */
__attribute__((visibility("hidden"))) void *__dso_handle = &__dso_handle;
EOF
: >/build/crtend.c
for object in crtbegin crtend; do
    /out/zig clang "--target=$target" -resource-dir /out/lib -O2 -fPIC -c "/build/$object.c" \
        -o "$runtime/clang_rt.$object.o"
done

# Flags that no package can forget, because they are the compiler's defaults:
# * position independence is clang's default for this target; RELRO, BIND_NOW, no executable stack, no text relocation
#   and stripping belong to every link;
# * version scripts may name symbols that a configuration lacks, as with GNU ld;
# * _FORTIFY_SOURCE is absent on purpose: musl has no checking variants, the macro would do nothing;
# * -fcf-protection is absent on purpose: musl enables neither shadow stacks nor IBT, the markers would do nothing.
cat >/out/bin/cc.cfg <<EOF
--target=$target
-resource-dir /in/toolchain/lib
--sysroot=/in/musl
-idirafter /in/toolchain/lib/libc/include/$kernel_headers
-idirafter /in/toolchain/lib/libc/include/any-linux-any
-B/in/toolchain/bin
-fuse-ld=lld
-rtlib=compiler-rt
--unwindlib=none
-fstack-protector-strong
-fstack-clash-protection
-ffile-prefix-map=/build=.
-Werror=date-time
-Wl,-z,relro,-z,now,-z,noexecstack,-z,text,--gc-sections,--as-needed,--undefined-version,--hash-style=gnu,--build-id=none,-s
EOF
tool() {
    printf '#!/bin/sh\n%s\n' "$2" >"/out/bin/$1"
    chmod 755 "/out/bin/$1"
}
tool cc 'exec /in/toolchain/zig clang --config=/in/toolchain/bin/cc.cfg "$@"'
# libc++ is linked in, libc is not; zig adds a sanitizer unless told.
cat >/out/bin/c++ <<EOF
#!/bin/sh
mode=-pie
for argument in "\$@"; do
    case \$argument in -c | -S | -E | -shared | -r) mode= ;; esac
done
exec /in/toolchain/zig c++ -target $target -dynamic -fPIC -fno-sanitize=undefined -fstack-protector-strong \\
    -ffile-prefix-map=/build=. -Wl,-z,relro,-z,now \$mode -s "\$@"
EOF
chmod 755 /out/bin/c++
for name in ar ranlib ld.lld; do
    tool "$name" "exec /in/toolchain/zig $name \"\$@\""
done
tool strip '# Every link already strips (see cc.cfg); the host'\''s strip would tie the bytes to the host.'
ln -s cc "/out/bin/$target-cc"
ln -s cc "/out/bin/$target-gcc"

cat >/out/env.sh <<EOF
# Sourced by every build script. Headers and libraries of all inputs are found without further flags.
TARGET=$target
ARCH=$arch
OPENSSL_TARGET=$openssl_target
PATH=/in/toolchain/bin:\$PATH
CC=cc CXX=c++ AR=ar RANLIB=ranlib STRIP=strip LD=ld.lld
CFLAGS="-O2 -g0 -pipe"
CXXFLAGS=\$CFLAGS
CPPFLAGS=
LDFLAGS=
for input in /in/*/; do
    [ "\$input" = /in/musl/ ] && continue
    [ -d "\${input}usr/include" ] && CPPFLAGS="\$CPPFLAGS -I\${input}usr/include"
    [ -d "\${input}usr/lib" ] && LDFLAGS="\$LDFLAGS -L\${input}usr/lib"
done
# Nothing may depend on the day: what insists on a date gets this one, whatever the image's own epoch is.
SOURCE_DATE_EPOCH=315532800
# The sandbox has one user: the owners in a tarball cannot be restored.
TAR_OPTIONS=--no-same-owner
# pkg-config of the host would answer with the host's libraries.
PKG_CONFIG=false
ZIG_GLOBAL_CACHE_DIR=/tmp/zig-cache
ZIG_LOCAL_CACHE_DIR=/tmp/zig-cache
export TARGET ARCH OPENSSL_TARGET PATH CC CXX AR RANLIB STRIP LD CFLAGS CXXFLAGS CPPFLAGS LDFLAGS PKG_CONFIG
export SOURCE_DATE_EPOCH TAR_OPTIONS ZIG_GLOBAL_CACHE_DIR ZIG_LOCAL_CACHE_DIR
EOF
