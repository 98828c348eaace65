"""The part `firewall`."""

from daemon.core.manifest import File, Manifest, Names, Verb

MANIFEST = Manifest(
    name="firewall",
    part="part:Firewall",
    after=("config",),
    files=(
        File("firewall.toml", check="model:Config", apply="firewall.apply"),
        File("lists/*", apply="firewall.apply"),
    ),
    verbs={"firewall": Verb("verbs", "What may reach this device, and what it forwards.")},
    names={
        "zone": Names("firewall.status", ("zones",)),
        "firewall-list": Names("firewall.status", ("lists",)),
        "firewall-service": Names("firewall.status", ("services",)),
        "firewall-entry": Names("firewall.list", ("entries",)),
    },
    claims="claims:unit",
    # What version 0.1 was about to do, which a start carries out: not for a backup to say.
    passing=("var/lib/mixos/firewall/pending.json", "var/lib/mixos/firewall/committed.json"),
)
