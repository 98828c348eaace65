"""The part `transfer`, which the daemon itself makes."""

from daemon.core.manifest import Manifest

MANIFEST = Manifest(name="transfer", passing=("var/lib/mixos/transfers",))
