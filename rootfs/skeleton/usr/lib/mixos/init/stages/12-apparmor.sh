# shellcheck shell=sh
# AppArmor policy, compiled with the image and read from the verified root, before anything starts that it is about.
# Profiles attach by path when a program is executed. The kernel takes a profile in one write only, hence dd.
policy=/sys/kernel/security/apparmor
loaded='' failed=''

load_policy() {
    dd if="/usr/lib/mixos/apparmor/$1" of="$policy/.replace" bs=1M conv=notrunc 2>/dev/null
}

if [ -e "$policy/.replace" ]; then
    # Together; one by one if the kernel refuses that, to say which of them it is.
    load_policy all && together=yes || together=
    for file in /usr/lib/mixos/apparmor/*.bin; do
        name=${file##*/}
        name=${name%.bin}
        if [ -n "$together" ] || load_policy "$name.bin"; then
            loaded="$loaded $name"
        else
            failed="$failed $name"
        fi
    done
    [ -z "$failed" ] || say "AppArmor refused the profiles of:$failed"
    # Until the next boot nobody changes it any more, root included.
    echo Y >/sys/module/apparmor/parameters/lock_policy || say "the AppArmor policy could not be locked"
else
    say "this kernel has no AppArmor: services run unconfined"
fi
printf 'loaded%s\nfailed%s\n' "$loaded" "$failed" >"$RUN/apparmor"
