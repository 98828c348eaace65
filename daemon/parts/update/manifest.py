"""The part `update`. It starts last: a new version is good when all else is up."""

from daemon.core.manifest import File, Manifest, Names, Verb

MANIFEST = Manifest(
    name="update",
    part="part:Update",
    after=("firewall", "mdns", "metrics", "net", "proxy", "sandbox", "service", "storage", "vpn"),
    files=(  # read at each use
        File("update.pem", check="fetching:check_certificates"),
        File("update.toml", check="common.settings.model:check_update"),
    ),
    verbs={"update": Verb("verbs", "See what runs and what the next boot starts; go back to the other version.")},
    names={"blocked-version": Names("update.status", ("blocked",)), "conflict": Names("update.status", ("conflicts",))},
    passing=("var/lib/mixos/update",),
)
