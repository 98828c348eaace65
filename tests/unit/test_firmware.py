"""`mixos-firmware`: what an image adds to Secure Boot's databases, on a simulated device with real signatures."""

import errno
import os
from dataclasses import replace

import pytest

from buildsys.run import run
from common.disk import gpt
from common.efi import additions, siglist
from common.efi.additions import Addition
from common.efi.entries import FOLDER
from common.efi.siglist import Evidence
from common.errors import FormatError, RefusedError
from daemon.firmware import judge, variables
from daemon.firmware.judge import Program
from image import esp, secureboot
from tests import firmware as simulated
from tests.firmware import Firmware, addition, certificate, hash_of, said, sign_entry
from tests.secureboot import OWNER, signer
from tests.slots import Device


@pytest.fixture
def device(tmp_path):
    """1.0 runs, signed by db."""
    found = Device(tmp_path)
    found.rescue()
    found.boot()
    return found


@pytest.fixture
def firmware(device, monkeypatch):
    monkeypatch.setattr(variables, "set_variable", simulated.set_variable)
    return Firmware(device)


@pytest.fixture
def mixos(device, capsys):
    """Words → status and what is said."""

    def call(*words):
        status = simulated.main(list(words), device.tree)
        return status, said(capsys.readouterr().out)

    return call


def looked(mixos):
    """name → (there, against)."""
    status, found = mixos("look")
    assert status == 0, found
    return {one["name"]: (one["there"], one["against"]) for one in found["additions"]}


def running_image(device):
    descriptor = os.open(device.path, os.O_RDONLY)
    try:
        return device.editor(descriptor).read(f"{FOLDER}/{device.running.name}")
    finally:
        os.close(descriptor)


def test_a_certificate_is_added_once(firmware, mixos):
    name = firmware.brings(1, addition("db", certificate("db-2")))
    assert looked(mixos) == {name: (False, None)}
    assert mixos("add", name) == (0, {"added": True})
    assert firmware.get("db") == (certificate("db"), certificate("db-2"))
    assert looked(mixos) == {name: (True, None)}
    before = firmware.path("db").read_bytes()
    assert mixos("add", name) == (0, {"added": False})
    assert firmware.path("db").read_bytes() == before


def test_a_new_kek_signs_after_it_was_added(firmware, mixos):
    first = firmware.brings(1, addition("KEK", certificate("KEK-2")))
    second = firmware.brings(2, addition("db", certificate("db-2"), by="KEK-2"))
    status, found = mixos("add", second)
    assert (status, found["error"]["reason"]) == (7, "firmware-refused")
    assert mixos("add", first)[0] == mixos("add", second)[0] == 0
    assert firmware.get("KEK") == (certificate("KEK"), certificate("KEK-2"))
    assert firmware.get("db")[1:] == (certificate("db-2"),)


def test_what_another_owner_has_put_there_is_there(firmware, mixos):
    name = firmware.brings(1, addition("db", certificate("db-2")))
    firmware.set("db", certificate("db"), replace(certificate("db-2"), owner=OWNER.__class__(int=7)))
    assert looked(mixos) == {name: (True, None)}


def test_only_a_part_is_there(firmware, mixos):
    name = firmware.brings(1, addition("db", certificate("db"), certificate("db-2")))
    assert mixos("add", name) == (0, {"added": True})
    assert firmware.get("db") == (certificate("db"), certificate("db-2"))


def test_without_secure_boot_there_is_nothing(firmware, mixos):
    name = firmware.brings(1, addition("db", certificate("db-2")))
    firmware.enforce(on=False)
    assert looked(mixos) == {}
    assert mixos("add", name)[1]["error"]["reason"] == "firmware-none"
    assert firmware.get("db") == (certificate("db"),)


def held(mixos, firmware, name, word):
    """It is not added, and what it would stop is named."""
    there, against = looked(mixos)[name]
    assert not there
    assert word in against
    before = firmware.path("dbx").exists()
    status, found = mixos("add", name)
    assert (status, found["error"]["reason"]) == (7, "firmware-held")
    assert word in found["error"]["error"]
    assert firmware.path("dbx").exists() == before


def test_what_runs_is_not_revoked(firmware, mixos, device):
    held(mixos, firmware, firmware.brings(1, addition("dbx", hash_of(running_image(device)))), "(1.0)")
    held(mixos, firmware, firmware.brings(2, addition("dbx", certificate("db"))), "would not start")


def test_the_other_slot_is_not_revoked(firmware, mixos, device):
    root_hash = device.install("1.1", "b")
    image = sign_entry(device, root_hash, signer("db"))
    name = firmware.brings(1, addition("dbx", hash_of(image)))
    held(mixos, firmware, name, "(1.1)")
    sign_entry(device, root_hash, signer("stranger"))  # firmware starts it in no case
    assert mixos("add", name) == (0, {"added": True})
    assert firmware.get("dbx") == (hash_of(image),)


def test_an_entry_whose_root_is_gone_is_revoked(firmware, mixos, device):
    """Whoever can write the ESP does not keep an old version from being revoked by leaving its kernel image there."""
    root_hash = device.install("1.1", "b")
    image = sign_entry(device, root_hash, signer("db"))
    device.install("1.2", "b", root=b"another".ljust(4096, b".") * 8)
    name = firmware.brings(1, addition("dbx", hash_of(image)))
    assert mixos("add", name) == (0, {"added": True})


@pytest.mark.parametrize("path", ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi", f"{FOLDER}/RESCUE.EFI"])
@pytest.mark.parametrize("partition", [esp.NAME, esp.SECOND])
def test_loader_and_rescue_entry_are_not_revoked(firmware, mixos, device, path, partition):
    """On either of the two, each signed by a key of its own."""
    descriptor = os.open(device.path, os.O_RDWR)
    try:
        part = gpt.read(descriptor).find(partition)
        contents = esp.read(descriptor, part)
        image = secureboot.sign(simulated.pe_image([(".text", path.encode())]), signer("db-1"))
        esp.write(descriptor, part, {**contents, path: image}, 7, 0)
    finally:
        os.close(descriptor)
    firmware.set("db", certificate("db"), certificate("db-1"))
    name = firmware.brings(1, addition("dbx", certificate("db-1")))
    held(mixos, firmware, name, f"{path} on {partition}")


def test_what_only_firmware_can_verify_is_not_revoked(firmware, mixos, device):
    """A loader whose signature counts as wrong here: firmware may know its algorithm, and has started it."""
    by = signer("vendor", "authority", pss=True)
    image = secureboot.sign(simulated.pe_image([(".text", b"the loader")]), by)
    known = certificate("db"), certificate("authority")
    assert "wrong" in (siglist.refusal(image, siglist.write(known), b"") or "")
    descriptor = os.open(device.path, os.O_RDWR)
    try:
        part = gpt.read(descriptor).find(esp.NAME)
        contents = esp.read(descriptor, part)
        esp.write(descriptor, part, {**contents, "EFI/BOOT/BOOTX64.EFI": image}, 7, 0)
    finally:
        os.close(descriptor)
    firmware.set("db", *known)
    held(mixos, firmware, firmware.brings(1, addition("dbx", certificate("authority"))), "BOOTX64.EFI")


def test_what_cannot_be_judged_is_not_revoked(firmware):
    """Neither by a signature nor by a certificate in db that cannot be read: firmware may read more."""
    variable, data = addition("dbx", certificate("stranger"))
    one, odd = Addition(1, variable, data), replace(certificate("db"), data=certificate("db").data + b"\0")
    evidence = Evidence.of(secureboot.sign(simulated.LOADER, signer("db")))
    for databases, found in (
        ({"db": (certificate("db"),)}, replace(evidence, signatures=(b"nonsense",))),
        ({"db": (odd,)}, evidence),
    ):
        assert "it cannot be told whether" in (judge.against(one, databases, [Program("loader", found)]) or "")
    assert judge.against(one, {"db": (certificate("db"),)}, [Program("loader", evidence)]) is None


def test_what_nothing_starts_is_revoked(firmware, mixos, device):
    old = secureboot.sign(simulated.pe_image([(".text", b"an older version")]), signer("db"))
    name = firmware.brings(1, addition("dbx", hash_of(old)))
    assert mixos("add", name) == (0, {"added": True})
    assert firmware.get("dbx") == (hash_of(old),)


def test_databases_that_cannot_be_judged_are_left_alone(firmware, mixos):
    """Firmware has started what runs, and its dbx has something that nobody here knows."""
    firmware.set("dbx", siglist.Signature(OWNER, OWNER, b"something"))
    held(mixos, firmware, firmware.brings(1, addition("dbx", certificate("db-1"))), "it cannot be told")
    firmware.path("dbx").write_bytes(b"\x27\0\0\0" + b"nonsense")
    status, found = mixos("look")
    assert (status, found["error"]["reason"]) == (8, "signature-list")


def test_an_esp_that_cannot_be_read_keeps_all_from_being_added(firmware, mixos, device):
    firmware.brings(1, addition("dbx", certificate("db-1")))
    with device.path.open("r+b") as disk:
        disk.seek(gpt.read(disk.fileno()).find(esp.SECOND).offset)
        disk.write(bytes(512))
    status, found = mixos("look")
    assert (status, found["error"]["reason"]) == (8, "esp-damaged")


def test_firmware_that_refuses(firmware, mixos):
    name = firmware.brings(1, addition("db", certificate("db-2"), by="stranger"))
    status, found = mixos("add", name)
    assert (status, found["error"]["reason"]) == (7, "firmware-refused")
    assert "EFI_SECURITY_VIOLATION" in found["error"]["error"]
    firmware.room(100)
    status, found = mixos("add", firmware.brings(2, addition("db", certificate("db-3"))))
    assert "EFI_OUT_OF_RESOURCES" in found["error"]["error"]
    assert firmware.get("db") == (certificate("db"),)


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EROFS])
def test_other_answers_of_firmware(firmware, device, monkeypatch, number):
    def refuse(path, data):
        raise OSError(number, "no")

    monkeypatch.setattr(variables, "set_variable", refuse)
    firmware.brings(1, addition("db", certificate("db-2")))
    (one,) = additions.read(device.tree / additions.FOLDER.relative_to("/"))
    with pytest.raises(RefusedError) as caught:
        variables.add(device.tree, one)
    assert caught.value.reason == "firmware-refused"


def test_firmware_that_says_yes_and_does_no(firmware, device, monkeypatch):
    monkeypatch.setattr(variables, "set_variable", lambda path, data: None)
    firmware.brings(1, addition("db", certificate("db-2")))
    (one,) = additions.read(device.tree / additions.FOLDER.relative_to("/"))
    with pytest.raises(RefusedError) as caught:
        variables.add(device.tree, one)
    assert caught.value.reason == "firmware-refused"


def test_it_is_written_in_one_piece(tmp_path):
    """By the kernel's rule: attributes, then the update; a variable that is not there is made."""
    path = tmp_path / "db"
    variables.set_variable(path, b"\x67\0\0\0update")
    assert path.read_bytes() == b"\x67\0\0\0update"


def test_an_addition_that_is_not_there_or_not_named(firmware, mixos):
    assert mixos("add", "0001-db")[1]["error"]["reason"] == "firmware-none"
    assert mixos("add", "../../x")[1]["error"]["reason"] == "firmware-none"
    assert mixos("drop", "x")[1]["error"]["reason"] == "usage"


# --- the files --------------------------------------------------------------------------------------------------------


def test_additions_are_in_order(tmp_path):
    assert additions.read(tmp_path / "none") == ()
    for number, found in ((2, addition("dbx", certificate("x"))), (1, addition("KEK", certificate("y")))):
        (tmp_path / additions.file_name(number, found[0])).write_bytes(found[1])
    assert [one.name for one in additions.read(tmp_path)] == ["0001-KEK", "0002-dbx"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("0001-PK.auth", None),
        ("1-db.auth", None),
        ("0001-db.esl", None),
        ("0001-db.auth", b""),
        ("0001-db.auth", bytes(200)),
        ("0001-db.auth", bytes((64 << 10) + 1)),
        ("0001-db.auth", addition("db")[1]),
        ("0001-db.auth", addition("db", siglist.Signature(siglist.X509, OWNER, b"no certificate"))[1]),
    ],
)
def test_what_is_no_addition(tmp_path, name, data):
    (tmp_path / name).write_bytes(addition("db", certificate("db-2"))[1] if data is None else data)
    with pytest.raises(FormatError):
        additions.read(tmp_path)


def test_two_of_one_number(tmp_path):
    for variable in ("db", "dbx"):
        (tmp_path / additions.file_name(1, variable)).write_bytes(addition(variable, certificate("x"))[1])
    with pytest.raises(siglist.SignatureListError):
        additions.read(tmp_path)


def test_sbvarsign_makes_what_firmware_takes(firmware, mixos, device, tmp_path):
    """An addition by other tools than ours."""
    (tmp_path / "certificate").write_bytes(signer("db-2").der)
    (tmp_path / "KEK.pem").write_bytes(signer("KEK").certificate)
    key = signer("KEK").key
    assert isinstance(key, bytes)
    (tmp_path / "KEK.key").write_bytes(key)
    words = ["--owner", str(OWNER), "--type", "x509", "--output", "list", "certificate"]
    run(["sbsiglist", *words], cwd=tmp_path)
    words = ["--key", "KEK.key", "--cert", "KEK.pem", "--output", "signed"]
    run(["sbvarsign", *words, "--attr", ",".join(ATTRIBUTES), "db", "list"], cwd=tmp_path)
    theirs = (tmp_path / "signed").read_bytes()
    ours = addition("db", certificate("db-2"))[1]
    assert siglist.read_update(theirs).signatures == siglist.read_update(ours).signatures
    assert mixos("add", firmware.brings(1, ("db", theirs))) == (0, {"added": True})


ATTRIBUTES = ("NON_VOLATILE", "BOOTSERVICE_ACCESS", "RUNTIME_ACCESS", "APPEND_WRITE")
