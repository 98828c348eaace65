"""Stage 60 of the boot: which files of the ESP it names as not read, and whether what runs is on trial."""

from __future__ import annotations

import re

import pytest

from buildsys.run import run
from tests.hostpackages import ROOT

STAGE = ROOT / "rootfs/skeleton/usr/lib/mixos/init/stages/60-preseed.sh"
STUBS = (
    "partition() { return 1; }; first_line() { return 1; }; say() { printf '%s\\n' \"$*\"; }; umount() { :; }; set -eu;"
    "STATE=/none RUN=.\n"
)


def named(folder) -> list[str]:
    """The names that the stage complains about, with `folder` as the mounted ESP."""
    script = STAGE.read_text().replace("/boot/", f"{folder}/").replace("/usr/libexec/mixos-preseed", ": ")
    done = run(["sh", "-c", STUBS + script.replace(">/dev/console 2>&1", "")], env={"MIXOS_VERSION": "1"})
    return re.findall(r"'(.*)' on the ESP is NOT READ", done.text)


@pytest.mark.parametrize(
    "name",
    [
        "mixos-preseed.toml.txt",
        "mixos-preseed.txt",
        "mixos_preseed.toml",
        "mixos-preseed (1).toml",
        "Mixos-Preseed.TOML.TXT",
        "preseed.toml",
        "mixos-presed.toml",
        "mixos.toml",
    ],
)
def test_a_preseed_under_another_name_is_named(tmp_path, name):
    (tmp_path / name).write_text("")
    assert named(tmp_path) == [name]
    (tmp_path / "mixos-preseed.toml").write_text("")  # also beside the right one: it may be the newer of the two
    assert named(tmp_path) == [name]


def test_what_else_is_on_the_esp_is_nobodys_business(tmp_path):
    for name in ("EFI", "loader"):
        (tmp_path / name).mkdir()
    for name in ("mixos-preseed.toml", "._mixos-preseed.toml", "notes.txt", "loader.conf"):
        (tmp_path / name).write_text("")
    assert named(tmp_path) == []


def test_an_empty_esp_a_folder_of_that_name_and_a_name_for_the_terminal(tmp_path):
    assert named(tmp_path) == []
    (tmp_path / "mixos-preseed.toml").mkdir()
    assert named(tmp_path) == ["mixos-preseed.toml"]
    (tmp_path / "mixos-preseed.toml").rmdir()
    (tmp_path / "preseed\x1b[2J\n").write_text("")
    assert named(tmp_path) == ["preseed?[2J?"]


@pytest.mark.parametrize(
    ("running", "others", "trial"),
    [
        ("k3v7q+2-1.efi", ["aaaaa+4.efi"], True),
        ("k3v7q+0-3.efi", ["aaaaa+4.efi", "RESCUE.EFI"], True),
        ("k3v7q+2-1.efi", ["aaaaa+0-4.efi"], False),  # nothing else that would be started
        ("k3v7q+2-1.efi", ["RESCUE.EFI", "COMING.NEW"], False),
        ("k3v7q+3-1.efi", ["aaaaa+4.efi"], False),  # it was called good
        ("k3v7q.efi", ["aaaaa+4.efi"], False),
    ],
)
def test_what_is_on_trial(tmp_path, running, others, trial):
    folder = tmp_path / "EFI/Linux"
    folder.mkdir(parents=True)
    for name in (running, *others):
        (folder / name).touch()
    (tmp_path / "counted").write_bytes(b"\6\0\0\0" + f"\\EFI\\Linux\\{running}\0".encode("utf-16-le"))
    script = STAGE.read_text().replace("/boot/", f"{tmp_path}/").replace("\nCOUNTED=", "\nCOUNTED=counted #")
    run(["sh", "-c", STUBS + script], cwd=tmp_path)
    assert (tmp_path / "trial").exists() == trial
