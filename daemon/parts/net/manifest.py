"""The part `net`."""

from daemon.core.manifest import File, Manifest, Names, Verb

MANIFEST = Manifest(
    name="net",
    part="part:Interfaces",
    after=("service",),
    files=(File("network.toml", check="netfile:NetworkFile", apply="net.apply"),),
    verbs={"net": Verb("verbs", "Look at and set up the network.")},
    names={"interface": Names("net.status", ("interfaces",))},
    # What version 0.1 was about to do, which a start carries out: not for a backup to say.
    passing=("var/lib/mixos/net/trial.json",),
)
