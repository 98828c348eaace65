"""The part `api`, which the daemon itself makes."""

from daemon.core.manifest import Manifest, Names, Verb

MANIFEST = Manifest(
    name="api",
    verbs={
        "api": Verb("verbs", "Show what programs can call."),
        "audit": Verb("audit", "Show or check the log of who changed what."),
        "events": Verb("events", "Show what happens on the device, as it happens."),
    },
    names={"method": Names("api.methods")},
    passing=("var/lib/mixos/idempotency",),
)
