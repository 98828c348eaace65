"""The part `service`."""

from daemon.core.manifest import File, Manifest, Names, Verb

MANIFEST = Manifest(
    name="service",
    part="part:Manager",
    after=("firewall", "proxy", "storage"),
    on_host=True,
    files=(
        File("units/*.toml", check="load:check", fits="load:fits", apply="service.reload"),
        File("enabled.toml", check="part:Enabled", apply="service.reload"),
    ),
    verbs={"service": Verb("verbs", "List, start, stop and watch services.")},
    names={"unit": Names("service.list", ("units",))},
    functions={"state-folders": "load:state_folders", "unit-state": "shim:load_state"},
    backup={"units": ("etc/mixos/units", "etc/mixos/enabled.toml", "var/lib/mixos/units")},
)
