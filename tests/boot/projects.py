"""A copy of this checkout with keys and results of its own, for tests that build other images than that under test."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from buildsys.run import run
from tests.hostpackages import ROOT


@dataclass(frozen=True)
class Project:
    """base: the folder with all of it."""

    base: Path

    @classmethod
    def copied(cls, base: Path) -> Project:
        """With new keys."""
        (base / "out").mkdir()
        without = shutil.ignore_patterns(".*", "__pycache__", "out", "tests")
        shutil.copytree(ROOT, base / "project", symlinks=True, ignore=without)
        found = cls(base)
        found.mixos("keys", "make", "--simple", "--no-passphrase")
        return found

    def mixos(self, *words: str) -> str:
        """The project's command."""
        environment = {"MIXOS_KEYS": str(self.base / "private"), "MIXOS_OUT": str(self.base / "out")}
        argv = [Path(sys.executable).with_name("mixos"), "-C", self.base / "project", *words]
        return run(argv, env={**os.environ, **environment}, timeout=1800).text

    def build(self, version: str) -> Path:
        """An image, unsigned."""
        text = re.sub(r'^version = ".*"', f'version = "{version}"', (ROOT / "mixos.toml").read_text(), flags=re.M)
        (self.base / "project/mixos.toml").write_text(text)
        self.mixos("build")
        return self.base / "out" / f"mixos-{version}-x86_64.img"
