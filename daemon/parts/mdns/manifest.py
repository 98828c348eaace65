"""The part `mdns`."""

from daemon.core.manifest import File, Manifest, Process, Verb

MANIFEST = Manifest(
    name="mdns",
    part="part:MdnsPart",
    after=("vpn",),
    files=(File("mdns.toml", check="part:MdnsFile", apply="mdns.apply"),),
    process=Process("mdns", "mdns", memory=64 << 20, runs="process:Mdns"),
    verbs={"mdns": Verb("verbs", "The device's name and services on the local network.")},
)
