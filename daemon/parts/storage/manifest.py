"""The part `storage`. It starts before the services: their quotas hold from their start."""

from daemon.core.manifest import Manifest, Verb

MANIFEST = Manifest(
    name="storage",
    part="part:Storage",
    after=("config",),
    verbs={"storage": Verb("verbs", "Look at disks and at what fills them; limit what units keep.")},
    claims="claims:unit",
)
