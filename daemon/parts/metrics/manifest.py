"""The part `metrics`."""

from daemon.core.manifest import File, Manifest, Process, Verb

MANIFEST = Manifest(
    name="metrics",
    part="part:Metrics",
    after=("sandbox",),
    on_host=True,
    files=(File("metrics.toml", check="config:Config", apply="metrics.reload"),),
    process=Process("metrics", "metrics-endpoint", memory=48 << 20, runs="http:Endpoint"),
    verbs={
        "metrics": Verb("verbs", "Figures of the machine and its services."),
        "top": Verb("top", "Watch what the device is busy with."),
    },
)
