"""The part `net`."""

from daemon.core.manifest import File, Manifest, Names, Verb

MANIFEST = Manifest(
    name="net",
    part="part:Interfaces",
    after=("service",),
    files=(File("network.toml", check="netfile:NetworkFile", apply="net.apply"),),
    verbs={"net": Verb("verbs", "Look at and set up the network.")},
    names={"interface": Names("net.status", ("interfaces",))},
)
