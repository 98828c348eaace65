"""The part `system`, which the daemon itself makes."""

from daemon.core.manifest import Manifest, Verb

MANIFEST = Manifest(
    name="system",
    verbs={
        "status": Verb("verbs", "Show version, slot, health, network and hardening of this device."),
        "boot": Verb("boot", "Show where the time of the last boot went."),
        "ping": Verb("verbs", "Check that the daemon answers."),
        "reboot": Verb("verbs", "Stop everything in order and start again."),
        "system": Verb("verbs", "Erase all data of this device: factory reset."),
        "poweroff": Verb("verbs", "Stop everything in order and switch off."),
    },
)
