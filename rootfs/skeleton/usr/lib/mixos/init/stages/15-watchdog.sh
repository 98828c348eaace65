# shellcheck shell=sh
# From here on a system that hangs is reset by hardware, and one on trial that does not get well is restarted (stage 60).
# The process lives until the very end of a shutdown.
/usr/libexec/mixos/keeper /dev/watchdog0 60 "$RUN/trial" || say "nothing watches whether this system hangs"
[ -c /dev/watchdog0 ] || note "this machine has no hardware watchdog"
