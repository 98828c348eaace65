# Meson is Python and runs with the host's interpreter; Ninja is a host program from its own wheel.
python3 -m zipfile -e /in/meson /out/lib
python3 -m zipfile -e /in/ninja /build
mkdir -p /out/bin
install -m 755 /build/ninja-*.data/scripts/ninja /out/bin/ninja

target=${MIXOS_TARGET:-x86_64-linux-musl}
arch=${target%%-*}
# needs_exe_wrapper: nothing that was compiled is run to find facts out, as with configure's --host.
cat >/out/cross.ini <<EOF
[binaries]
c = '/in/toolchain/bin/cc'
ar = '/in/toolchain/bin/ar'
strip = '/in/toolchain/bin/strip'

[host_machine]
system = 'linux'
cpu_family = '$arch'
cpu = '$arch'
endian = 'little'

[properties]
needs_exe_wrapper = true
EOF
# The environment's CFLAGS and LDFLAGS reach the target's compiler, also in a cross build.
# By its own name it also calls itself later, from what it leaves for Ninja to do.
cat >/out/bin/meson <<'EOF'
#!/usr/bin/python3
import sys

sys.path.insert(0, "/in/meson/lib")
from mesonbuild import mesonmain

sys.exit(mesonmain.main())
EOF
chmod 755 /out/bin/meson
