"""The part `backup`. It starts first: it finishes a restore that was cut off."""

from daemon.core.manifest import Manifest, Verb

MANIFEST = Manifest(
    name="backup",
    part="part:Backup",
    verbs={"backup": Verb("verbs", "Keep settings, keys and state of this device in a file, and put them back.")},
    passing=("var/lib/mixos/backup",),
)
