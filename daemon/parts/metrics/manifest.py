"""The part `metrics`."""

from daemon.core.manifest import File, Manifest, Verb

MANIFEST = Manifest(
    name="metrics",
    part="part:Metrics",
    after=("sandbox",),
    on_host=True,
    files=(File("metrics.toml", check="config:Config", apply="metrics.reload"),),
    verbs={
        "metrics": Verb("verbs", "Figures of the machine and its services."),
        "top": Verb("top", "Watch what the device is busy with."),
    },
)
