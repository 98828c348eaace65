"""base-files: what the image's settings become, what is locked, and that the init scripts are sound shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildsys.graph import FromPath
from buildsys.job import Job
from buildsys.plan import _keys
from buildsys.project import Project
from buildsys.run import find_tool, run
from common.efi.additions import file_name
from common.efi.siglist import SignatureListError
from common.errors import CheckError, ConfigError
from common.trust.release import CERTIFICATES, POLICY, ROOT
from packages.mix.artifact import open_artifact
from rootfs.basefiles import SERVICES, build, render_templates
from tests.firmware import addition, certificate

ROOTFS = Path(__file__).parents[2] / "rootfs"
KERNEL = {"source": "distribution", "requested": "6.6.8", "fallback": True, "note": 'no "pin"'}


def built(tmp_path, keys=None, added=None, **params):
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    (report := tmp_path / "report.json").write_text('{"release": "6.12.1-mixos"}')
    values = {"version": "0.1.0", "build_id": "abc", "kernel": KERNEL, **params}
    inputs = {"rootfs": ROOTFS, "kernel-report": report, **({"keys": keys} if keys else {})}
    inputs |= {"additions": added} if added else {}
    build(Job(inputs, out, work, values, 1_700_000_000, 1))
    return open_artifact(out)


@pytest.fixture
def base(tmp_path):
    return built(tmp_path, settings={"hostname": "box", "timezone": "Europe/Berlin"})


def content(artifact, path: str) -> str:
    return (artifact.root / "files" / path).read_text()


def test_tree(base):
    entries = {entry.path: entry for entry in base.manifest.files}
    for link, target in {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "home": "var/home"}.items():
        assert entries[link].target == target
    assert entries["etc/shadow"].mode == 0o600
    assert entries["tmp"].mode == entries["var/tmp"].mode == 0o1777
    assert entries["root"].mode == 0o700
    assert all((entry.uid, entry.gid) == (0, 0) for entry in entries.values())
    assert not any(path.endswith(".j2") for path in entries)


def test_no_account_has_a_password(base):
    for line in content(base, "etc/shadow").splitlines():
        assert line.split(":")[1] in ("*", "!")
    names = {line.split(":")[0] for line in content(base, "etc/passwd").splitlines()}
    assert names == {line.split(":")[0] for line in content(base, "etc/shadow").splitlines()}
    assert all(line.split(":")[1] == "x" for line in content(base, "etc/passwd").splitlines())


def test_settings_and_release(base):
    assert content(base, "etc/hostname") == "box\n"
    release = content(base, "usr/lib/os-release")
    assert "VERSION_ID=0.1.0\n" in release
    assert "MIXOS_KERNEL_FALLBACK=yes\n" in release
    assert 'MIXOS_KERNEL_NOTE="no -pin-"\n' in release
    assert "MIXOS_EPOCH=1700000000\n" in content(base, "usr/lib/mixos/release")
    assert "umask 027" in content(base, "etc/profile")


def test_what_releases_are_trusted_by_is_where_the_device_looks_for_it(tmp_path, base):
    assert not [entry for entry in base.manifest.files if entry.path.startswith("usr/lib/mixos/update")]
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "root.json").write_text("{}")
    (keys / "root.json").chmod(0o600)
    (other := tmp_path / "other").mkdir()
    artifact = built(other, keys=keys)
    assert {entry.path: entry.mode for entry in artifact.manifest.files}["usr/lib/mixos/update/root.json"] == 0o644


def test_a_project_with_keys_gives_their_public_part_to_its_images(tmp_path):
    (tmp_path / "mixos.toml").write_text('[image]\nversion = "1.2.3"\nepoch = 1\n[packages]\ninstall = []\n')
    assert _keys(Project.at(tmp_path)) == {}
    (tmp_path / "keys" / "device").mkdir(parents=True)
    (wanted,) = _keys(Project.at(tmp_path)).values()
    assert isinstance(wanted, FromPath)
    assert wanted.path == tmp_path / "keys" / "device"
    assert set(wanted.only) == {ROOT, CERTIFICATES, POLICY}


def test_what_an_image_adds_to_databases_is_where_the_device_looks_for_it(tmp_path, base):
    assert not [entry for entry in base.manifest.files if entry.path.startswith("usr/lib/mixos/secureboot")]
    (tmp_path / "mixos.toml").write_text('[image]\nversion = "1.2.3"\nepoch = 1\n[packages]\ninstall = []\n')
    folder = tmp_path / "keys/secureboot/additions"
    folder.mkdir(parents=True)
    (wanted,) = _keys(Project.at(tmp_path)).values()
    assert wanted.path == folder
    variable, data = addition("db", certificate("db-2"))
    (folder / file_name(1, variable)).write_bytes(data)
    (other := tmp_path / "other").mkdir()
    assert "usr/lib/mixos/secureboot/0001-db.auth" in [one.path for one in built(other, added=folder).manifest.files]
    (folder / file_name(2, variable)).write_bytes(data[:-1])
    (damaged := tmp_path / "damaged").mkdir()
    with pytest.raises(SignatureListError):
        built(damaged, added=folder)


def test_services(tmp_path, base):
    inittab = content(base, "etc/inittab")
    assert inittab.count(":respawn:") == len(SERVICES) + 1  # syslogd brings klogd
    other = tmp_path / "other"
    other.mkdir()
    assert "ntp" not in content(built(other, services=["sshd"]), "etc/inittab")


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"version": "0.1 $(reboot)"}, "version-syntax"),
        ({"services": ["telnetd"]}, "service-unknown"),
        ({"settings": {"hostnam": "x"}}, "settings-unknown-key"),
        ({"settings": {"timezone": "Mars/Base"}}, "settings-value"),
    ],
)
def test_wrong_configuration(tmp_path, params, reason):
    with pytest.raises(ConfigError) as caught:
        built(tmp_path, **params)
    assert caught.value.reason == reason


def test_undefined_template_variable(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/x.j2").write_text("{{ nothing }}")
    with pytest.raises(CheckError) as caught:
        render_templates(tmp_path / "t", tmp_path / "out", {})
    assert caught.value.reason == "template"


def test_sshd_takes_keys_only(base):
    lines = content(base, "etc/ssh/sshd_config").splitlines()
    for wanted in (
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "AuthenticationMethods publickey",
        "AuthorizedKeysFile /etc/ssh/authorized_keys/%u",
        "DisableForwarding yes",
    ):
        assert wanted in lines
    assert lines.index("Include /etc/ssh/sshd_config.d/*.conf") < lines.index("AuthenticationMethods publickey")


@pytest.mark.integration
def test_shell_scripts():
    places = ("skeleton/usr/lib/mixos/init", "skeleton/etc/profile.d", "rescue/usr/lib/mixos/rescue")
    folders = [ROOTFS / place for place in places]
    scripts = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    assert {path.parent for path in scripts} >= set(folders)
    run([find_tool("shellcheck"), "-s", "dash", *scripts], cwd=ROOTFS)
