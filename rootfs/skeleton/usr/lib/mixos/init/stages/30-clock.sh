# shellcheck shell=sh
# A clock before the image was built is wrong for sure (flat battery); certificates and logs need better than that.
now=$(date +%s)
if [ "$now" -lt "$MIXOS_EPOCH" ]; then
    date -s "@$MIXOS_EPOCH" >/dev/null
    say "the clock was wrong; set to the date of this image until the network tells the time"
fi
