# Compiles each profile to the form that the kernel takes. Everything that the parser would ask the machine it runs on is
# answered here instead: its configuration, the place of included files, and (features) what the kernel can mediate.
mkdir -p /out/usr/lib/mixos/apparmor
cd "$(mktemp -d)"
cp -R /in/profiles/* .
# Processes of the daemon's parts: their profiles stand beside their code, and the daemon may enter these and no other.
entered=
for profile in /in/daemon/*/*.profile /in/daemon/*/*/*.profile; do
    cp "$profile" .
    name=${profile##*/}
    entered=$entered,${name%.profile}
done
echo "change_profile -> {${entered#,}}," >include/entered
for profile in *.profile; do
    apparmor_parser --config-file /dev/null --base . --Include . --kernel-features features --policy-features features \
        --skip-kernel-load --skip-cache --jobs 1 --quiet --Werror \
        --ofile "/out/usr/lib/mixos/apparmor/${profile%.profile}.bin" "$profile"
done
# All of them as the kernel takes them in one write, or not at all.
cat /out/usr/lib/mixos/apparmor/*.bin >/out/usr/lib/mixos/apparmor/all
