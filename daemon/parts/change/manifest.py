"""The part `change`: what is on trial, and ending it."""

from daemon.core.manifest import Manifest, Names, Verb

MANIFEST = Manifest(
    name="change",
    part="part:Change",
    on_host=True,
    verbs={
        "change": Verb("verbs", "Changes that are on trial."),
        "confirm": Verb("verbs", "Keep the change that is on trial."),
        "revert": Verb("verbs", "Undo the change that is on trial."),
    },
    names={"change": Names("change.list", ("changes",), "change")},
    passing=("var/lib/mixos/changes",),
)
