"""The part `mdns`."""

from daemon.core.manifest import File, Manifest, Verb

MANIFEST = Manifest(
    name="mdns",
    part="part:MdnsPart",
    after=("vpn",),
    files=(File("mdns.toml", check="part:MdnsFile", apply="mdns.apply"),),
    verbs={"mdns": Verb("verbs", "The device's name and services on the local network.")},
)
