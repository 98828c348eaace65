"""Secure Boot in firmware: keys enrolled by the boot manager itself, what starts after that and what does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from virt.firmware.varstore import autodetect

from common.disk import fatread, gpt
from common.efi import eventlog, measure, pe, siglist
from common.efi.entries import FOLDER, RESCUE
from image import esp, qemu, secureboot
from image.host import opened
from image.machine import VARIABLES
from tests.boot.guest import BOOT_SECONDS, DISK_SIZE, Guest
from tests.boot.versions import rewritten
from tests.secureboot import keys, signer
from tests.waiting import until

MakeGuest = Callable[..., Guest]
Floor = tuple[int, bool, str | None]  # what it is, whether the TPM keeps it, what is wrong with that

EFIVARS = "/sys/firmware/efi/efivars"
TPM = "/sys/class/tpm/tpm0"
ENTRY = "loader/entries/other.conf"
WORDS = "mixos.smuggled=1"
SMBIOS = (
    *("-smbios", f"type=11,value=io.systemd.stub.kernel-cmdline-extra={WORDS}"),
    *("-smbios", f"type=11,value=io.systemd.boot.kernel-cmdline-extra={WORDS}"),
)
REMOVE_FLOOR = """cd /usr/lib/mixos/python; python3 -c '
import os
from daemon import floor
from daemon.linux.tpm import Tpm
tpm = Tpm(os.open("/dev/tpmrm0", os.O_RDWR))
for place in (floor._look(tpm, handle) for handle in floor.PLACES):
    if place.state == "kept":
        tpm.undefine(place.handle)
'"""
REFUSED = r"(?i)(access denied|security violation)"


def contents(disk: Path) -> dict[str, bytes]:
    with opened(disk) as descriptor:
        return esp.read(descriptor, gpt.read(descriptor).find(esp.NAME))


def put(disk: Path, files: Mapping[str, bytes]) -> None:
    """Make these the files of the ESP."""
    with opened(disk, os.O_RDWR) as descriptor:
        esp.write(descriptor, gpt.read(descriptor).find(esp.NAME), files, 0x1234, int(time.time()))


def entry(files: Mapping[str, bytes]) -> str:
    (found,) = [path for path in files if path.startswith(f"{FOLDER}/") and not path.endswith(RESCUE)]
    return found


def databases(variables: Path) -> dict[str, tuple[siglist.Signature, ...]]:
    """What virt-firmware finds in a store of variables."""
    found = autodetect.open_varstore(str(variables)).get_varlist()
    names = [name for name in siglist.VARIABLES if name in found]
    return {name: siglist.read(found[name].data) for name in names}


@dataclass(frozen=True)
class Enrolled:
    """files: of the ESP of the signed image. plain: the unsigned UKI. other: a signed one that is revoked later.
    variables: the firmware's store in the end. The rest is what the running system said."""

    files: dict[str, bytes]
    plain: bytes
    other: bytes
    variables: Path
    serial: str
    shown: dict[str, bytes]
    lockdown: str
    cmdline: str
    pcrs: dict[str, str]
    log: bytes
    floors: dict[str, Floor]

    @property
    def started(self) -> bytes:
        """The signed UKI."""
        return self.files[entry(self.files)]


@pytest.fixture(scope="module")
def signed(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as a release has it: signed, with the files that enrol its keys."""
    path = tmp_path_factory.mktemp("signed") / "signed.img"
    files = secureboot.enrolment(keys(), datetime.now(UTC), certain=True)
    secureboot.sign_disk(image, path, keys().db, files, 1703030400, policy=signer("policy"))
    return path


def machine(make: MakeGuest, signed: Path, **more: object) -> Guest:
    """A guest with the signed image, in firmware with Secure Boot, in setup mode."""
    guest = make(secure_boot=True, **more)
    qemu.prepare_disk(signed, guest.vm.disk, DISK_SIZE, guest.vm.default_preseed())
    return guest


@pytest.fixture(scope="module")
def enrolled(make_guest: MakeGuest, image: Path, signed: Path, tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    """The first boot of the signed image on a machine in setup mode; then another image is revoked."""
    plain = contents(image)
    other = secureboot.sign(rewritten(plain[entry(plain)], {".osrel": "IMAGE_ID=mixos\n"}), signer("db"))
    guest = machine(make_guest, signed, tpm=True, extra=SMBIOS)
    guest.start()
    guest.wait_ssh()
    shown = {name: _bytes(guest, f"{EFIVARS}/{name}-*") for name in ("SecureBoot", "SetupMode", "PK", "KEK", "db")}
    revocation = [siglist.Signature(siglist.SHA256, keys().owner, pe.authenticode(other))]
    update = secureboot.update("dbx", revocation, signer("KEK"), datetime.now(UTC), append=True)
    guest.run(f"mount -o remount,rw {EFIVARS}")
    write = f"cat > /run/dbx && cat /run/dbx > {EFIVARS}/dbx-{siglist.VARIABLES['dbx']}"
    guest.run(write, stdin=siglist.written(update, append=True))
    found = Enrolled(
        contents(signed),
        plain[entry(plain)],
        other,
        tmp_path_factory.mktemp("variables") / VARIABLES,
        guest.serial,
        shown,
        guest.run("cat /sys/kernel/security/lockdown"),
        guest.run("cat /proc/cmdline"),
        {
            f"{bank}/{number}": guest.run(f"cat {TPM}/pcr-{bank}/{number}")
            for bank in ("sha256", "sha384")
            for number in (11, 12)
        },
        _bytes(guest, "/sys/kernel/security/tpm0/binary_bios_measurements"),
        floors(guest),
    )
    guest.discard()
    shutil.copyfile(guest.vm.state / VARIABLES, found.variables)
    return found


def _bytes(guest: Guest, path: str) -> bytes:
    done = guest.attempt(f"cat {path}")
    assert done.status == 0, done
    return done.stdout


def floors(guest: Guest) -> dict[str, Floor]:
    """The downgrade floor that the device tells: at first, when the data have one, when the data have lost it, and when
    somebody has removed it from the TPM as well."""
    until(lambda: guest.attempt("mixctl update commit").status == 0, BOOT_SECONDS)
    found = {"first": floor(guest, lambda said: not said[0])}
    record = "/var/lib/mixos/update/record.json"
    for when, change, done in (
        ("data", f"sed -i '1s/{{/{{\"floor\": 2026,/' {record}", lambda said: said[1]),
        ("lost", f"rm {record}", lambda said: said[1]),
        ("removed", REMOVE_FLOOR, lambda said: said[2]),
    ):
        guest.run(f"{change} && kill -KILL $(head -n 1 /run/mixos/mixosd.lock)")
        found[when] = floor(guest, done)
    return found


def floor(guest: Guest, done: Callable[[Floor], object]) -> Floor:
    """Once the daemon is there (again), and the TPM has done what it was asked."""
    said: list[Floor] = []

    def there() -> bool:
        answer = guest.attempt("mixctl update status --json")
        if answer.status == 0:
            status = json.loads(answer.stdout)
            said.append((status["floor"], status["floor-in-tpm"], status["floor-problem"]))
        return answer.status == 0 and bool(done(said[-1]))

    until(there, BOOT_SECONDS)
    return said[-1]


def test_the_tpm_keeps_the_downgrade_floor(enrolled: Enrolled) -> None:
    assert enrolled.floors == {
        "first": (0, False, None),
        "data": (2026, True, None),
        "lost": (2026, True, None),
        "removed": (0, False, "the TPM kept 2026, and does not any more"),
    }


def test_a_machine_in_setup_mode_enrols_the_keys_of_the_image(enrolled: Enrolled) -> None:
    assert (enrolled.shown["SecureBoot"][4:], enrolled.shown["SetupMode"][4:]) == (b"\1", b"\0")
    for name, by in (("PK", keys().pk), ("KEK", keys().kek), ("db", keys().db)):
        assert siglist.read_variable(enrolled.shown[name]) == (keys().entry(by),)
        assert databases(enrolled.variables)[name] == (keys().entry(by),)


def test_the_kernel_is_locked_down(enrolled: Enrolled) -> None:
    assert "[confidentiality]" in enrolled.lockdown
    assert "Secure boot enabled" in enrolled.serial or "Secure Boot is enabled" in enrolled.serial


def test_smbios_adds_nothing_to_the_command_line(enrolled: Enrolled) -> None:
    headers = pe.parse(enrolled.plain)
    assert enrolled.cmdline.strip() == headers.content(enrolled.plain, ".cmdline").decode()


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_what_was_measured_is_what_was_predicted(enrolled: Enrolled, bank: str) -> None:
    assert enrolled.pcrs[f"{bank}/11"].strip().lower() == measure.pcr(enrolled.started, bank).hex()
    assert set(enrolled.pcrs[f"{bank}/12"].strip()) == {"0"}


def test_the_log_of_firmware_tells_of_no_option_roms(enrolled: Enrolled) -> None:
    assert [event for event in eventlog.events(enrolled.log) if event.pcr == measure.PCR]
    assert eventlog.option_roms(enrolled.log) == 0


def start(make: MakeGuest, signed: Path, enrolled: Enrolled, files: Mapping[str, bytes]) -> Guest:
    """A machine whose keys are enrolled, with these files on its ESP."""
    guest = machine(make, signed)
    put(guest.vm.disk, {**files, esp.PRESEED: guest.vm.default_preseed().encode()})
    shutil.copyfile(enrolled.variables, guest.vm.state / VARIABLES)
    guest.start()
    return guest


@pytest.mark.parametrize("why", ["unsigned", "another key", "revoked", "changed"])
def test_other_images_are_refused(make_guest: MakeGuest, signed: Path, enrolled: Enrolled, why: str) -> None:
    good = enrolled.started
    line = pe.parse(good).content(good, ".cmdline")
    image = {
        "unsigned": enrolled.plain,
        "another key": secureboot.sign(enrolled.plain, signer("stranger")),
        "revoked": enrolled.other,
        "changed": good.replace(line, line.replace(b"lockdown=confidentiality", b"lockdown=none".ljust(24))),
    }[why]
    assert image != good
    known = databases(enrolled.variables)
    assert [one.data for one in known["dbx"]] == [pe.authenticode(enrolled.other)]
    assert siglist.refused({"image": image}, known["db"], known["dbx"])
    assert not siglist.refused({"image": good}, known["db"], known["dbx"])
    guest = start(make_guest, signed, enrolled, {**enrolled.files, entry(enrolled.files): image})
    guest.wait_serial(REFUSED, BOOT_SECONDS)
    assert "EFI stub" not in guest.serial
    assert "Linux version" not in guest.serial


def test_an_unsigned_boot_manager_is_refused(
    make_guest: MakeGuest, image: Path, signed: Path, enrolled: Enrolled
) -> None:
    guest = start(make_guest, signed, enrolled, contents(image))
    guest.wait_serial(REFUSED, BOOT_SECONDS)
    assert "EFI stub" not in guest.serial


def test_an_entry_cannot_change_the_command_line(make_guest: MakeGuest, signed: Path, enrolled: Enrolled) -> None:
    files = {path: data for path, data in enrolled.files.items() if not path.startswith(f"{FOLDER}/")}
    files["EFI/other.efi"] = enrolled.started
    files[ENTRY] = f"title other\nefi /EFI/other.efi\noptions init=/bin/false {WORDS}\n".encode()
    guest = start(make_guest, signed, enrolled, files)
    guest.wait_ssh()
    assert guest.run("cat /proc/cmdline").strip() == enrolled.cmdline.strip()


def slots(disk: Path) -> dict[str, range]:
    """Of each name in the folder of entries: which of the folder's slots it has."""
    with opened(disk) as descriptor:
        part = gpt.read(descriptor).find(esp.NAME)
        volume = fatread.open_volume(descriptor, part.offset, part.size)
        (folder,) = [one for one in fatread.folders(volume) if one.prefix == f"{FOLDER}/"]
        return {one.name: one.slots for one in folder.entries if not one.directory}


def test_a_version_that_firmware_refuses_falls_back(make_guest: MakeGuest, signed: Path) -> None:
    """The loader restarts the machine each time; its counter leads to the other version. All that by itself."""
    guest = machine(make_guest, signed)
    files = contents(guest.vm.disk)
    good = entry(files)
    identity = pe.parse(files[good]).content(files[good], ".osrel").decode()
    newer = rewritten(files[good], {".osrel": re.sub(r'(IMAGE_VERSION=)"[^"]*"', r"\1'9.0'", identity)})
    put(guest.vm.disk, {**files, f"{FOLDER}/aaaaa+3.efi": newer})
    guest.start()
    guest.wait_serial("EFI stub", 3 * BOOT_SECONDS)
    left = good.removeprefix(f"{FOLDER}/").replace("+3", "+2-1")
    found = slots(guest.vm.disk)
    assert found.keys() == {"aaaaa+0-3.efi", left, RESCUE}
    assert max(found[left]) == max(map(max, found.values())) < 16  # firmware appends, within a sector so far
    guest.wait_ssh()
    assert len(re.findall(REFUSED, guest.serial)) >= 3
