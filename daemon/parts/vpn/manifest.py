"""The part `vpn`."""

from daemon.core.manifest import File, Manifest, Names, Verb

MANIFEST = Manifest(
    name="vpn",
    part="part:Vpn",
    after=("net",),
    files=(File("vpn.toml", check="model:VpnFile", apply="vpn.apply"),),
    verbs={"vpn": Verb("verbs", "WireGuard tunnels and their peers.")},
    names={
        "tunnel": Names("vpn.status", ("interfaces",)),
        "peer": Names("vpn.status", ("interfaces", "peers")),
    },
    backup={"vpn": ("etc/mixos/vpn.toml", "var/lib/mixos/vpn")},
    secret=("var/lib/mixos/vpn",),
)
