. /in/toolchain/env.sh
CFLAGS="$CFLAGS -ffunction-sections -fdata-sections"

tar xf /in/dbus --strip-components=1
# There is no pkg-config here to say where expat is; the compiler's flags do.
sed -i "s/expat = dependency('expat')/expat = cc.find_library('expat')/" meson.build
# No activation: services are the supervisor's, and the set-uid helper stays away. No AppArmor mediation, SELinux,
# audit, systemd or X11: each would bring a library, and policy is in system.conf. Three programs share the bus's own
# library and use little of it: linked in.
PATH=/in/meson/bin:$PATH
meson setup /build/work --cross-file /in/meson/cross.ini --auto-features=disabled --wrap-mode=nofallback \
    --prefix=/usr --sysconfdir=/etc --localstatedir=/var --libdir=lib --buildtype=plain -Ddefault_library=static \
    -Depoll=enabled -Dinotify=enabled -Dtraditional_activation=false -Dstats=false \
    -Druntime_dir=/run -Ddbus_user=messagebus -Dsession_socket_dir=/run
ninja -C /build/work bus/dbus-daemon tools/dbus-send tools/dbus-uuidgen

install -D -m 755 -t /out/usr/bin work/bus/dbus-daemon work/tools/dbus-send work/tools/dbus-uuidgen
mkdir -p /out/usr/share/dbus-1/system.d /out/etc/dbus-1/system.d
