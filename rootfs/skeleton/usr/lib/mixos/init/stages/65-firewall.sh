# shellcheck shell=sh
# Rules before there is a network: those in force when the device went down, else the image's. Fails closed only in so
# far as one of the two can be loaded; the daemon puts the file of rules into force later.
loaded=
for rules in /var/lib/mixos/firewall.json /usr/lib/mixos/firewall.json; do
    [ -z "$loaded" ] && [ -s "$rules" ] && nft -j -f "$rules" && loaded=$rules
done
if [ -n "$loaded" ]; then
    # What is in force, for the daemon's first start: it need not ask the kernel.
    (umask 077 && cp "$loaded" /run/mixos/firewall.loaded)
else
    say "NO FIREWALL: no rules could be loaded"
fi
