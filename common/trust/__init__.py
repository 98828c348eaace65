"""Whether a release is to be trusted: metadata of TUF, OpenPGP signatures, the floor below which nothing is taken."""

from pathlib import Path

ANCHORS = Path("/usr/lib/mixos/update")  # what an image trusts, on its verified root
