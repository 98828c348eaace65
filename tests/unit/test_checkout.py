"""What git makes of the files of this repository on hosts with other habits."""

from __future__ import annotations

import shutil

from buildsys.run import run
from tests.hostpackages import ROOT

FILES = (
    "Makefile",
    "ci/bootstrap",
    "mixos.toml",
    "kernel/patches/dm-init-wait.patch",
    "rootfs/skeleton/usr/lib/mixos/init/boot",
    "tests/data/state-0.1.tar.xz",
    "tests/unit/test_apparmor.golden",
)


def test_a_checkout_has_the_bytes_of_the_repository(tmp_path):
    """With git's setting for Windows, which writes CRLF into what it takes for text."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    odd = {"odd.golden": b"one\r\ntwo\n", "odd.patch": b"-one\r\n+two\n"}
    for name in (".gitattributes", *FILES):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    for name, data in odd.items():
        (source / name).write_bytes(data)
    env = {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-C", source]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "test"]):
        run([*git, *words], env=env)
    run(["git", "clone", "-q", "-c", "core.autocrlf=true", source, copy], env=env)
    for name in (*FILES, *odd):
        assert (copy / name).read_bytes() == (source / name).read_bytes(), name
