"""The part `config`."""

from daemon.core.manifest import Manifest, Names, Verb

MANIFEST = Manifest(
    name="config",
    part="part:Config",
    after=("backup",),
    on_host=True,
    verbs={"config": Verb("verbs", "Look at earlier configurations and go back to one.")},
    names={"config": Names("config.list", (), "path"), "revision": Names("config.history", (), "id")},
    backup={"history": ("var/lib/mixos/config",)},
    # What version 0.1 was about to do, which a start carries out: not for a backup to say.
    passing=("var/lib/mixos/config/undo.json",),
    # It has every earlier content, so whatever was ever a secret.
    secret=("var/lib/mixos/config",),
)
