"""The part `proxy`."""

from daemon.core.manifest import File, Manifest, Verb

MANIFEST = Manifest(
    name="proxy",
    part="part:Proxy",
    after=("config",),
    on_host=True,
    files=(
        File("proxy.toml", check="part:ProxyFile", apply="proxy.apply"),
        File("proxy.secret.toml", check="part:Credentials", apply="proxy.apply", writable=False),
    ),
    verbs={"proxy": Verb("verbs", "The proxy that everything on this device uses.")},
    functions={"proxies-for": "part:proxies_for"},
)
