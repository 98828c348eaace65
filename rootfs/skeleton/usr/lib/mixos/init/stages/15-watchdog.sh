# shellcheck shell=sh
# From here on a system that hangs is reset by hardware. The process lives until the very end of a shutdown; if it is
# killed otherwise the timer runs out and the boot counter of the loader decides what comes next.
if [ -c /dev/watchdog0 ]; then
    watchdog -T 60 -t 15 /dev/watchdog0 || say "the watchdog could not be started"
else
    note "this machine has no hardware watchdog"
fi
