"""The part `sandbox`."""

from daemon.core.manifest import File, Manifest, Names, Process, Verb

MANIFEST = Manifest(
    name="sandbox",
    part="part:Sandbox",
    after=("mdns", "service"),
    on_host=True,
    files=(File("profiles/*.toml", check="daemon.core.profiles:ProfileFile"),),
    process=Process(
        "sandbox-proxy",
        "sandbox-proxy",
        memory=64 << 20,
        tasks=16,
        runs="proxyprocess:ProxyProcess",
        tells=("sandbox.denied",),
    ),
    verbs={"sandbox": Verb("verbs", "Run a command confined; say what is enforced.")},
    functions={"confined": "confined:confined"},
    names={"profile": Names("sandbox.profiles")},
    backup={"units": ("etc/mixos/profiles",)},
)
