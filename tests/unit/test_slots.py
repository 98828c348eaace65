"""`mixos-slots`: another release into the slot that does not run, and what makes it startable, on a simulated disk."""

import os
import signal
from dataclasses import replace

import pytest

from common.bundle import order as orders
from common.disk import gpt, verity
from common.efi import pe, siglist, uki
from common.efi.entries import COMING, FOLDER, GOOD, Entry, image_name, read_name
from common.errors import BundleError, DiskError, MixosError, RefusedError
from daemon.firmware import variables
from daemon.parts.update.boot import Disk, look
from daemon.slots import worker
from daemon.slots.disk import Slot, count, entry, invalidate, kernel_place
from daemon.slots.examine import examine
from daemon.slots.seal import seal
from daemon.slots.stage import Stage, kernel
from tests.images import pe_image
from tests.offers import offer, order_for, root_of, served
from tests.secureboot import OWNER
from tests.slots import EFIVARS, Device


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return offer(tmp_path_factory.mktemp("offer"), "1.1.0", earlier="1.0.0")


@pytest.fixture
def device(tmp_path):
    """1.0.0 runs, and was called good."""
    found = Device(tmp_path, "1.0.0", root_of("1.0.0"))
    found.boot()
    bless(found)
    return found


def bless(device):
    disk = Disk.at(device.path)
    (running,) = [image for image in disk.images() if image.entry == device.running or image.entry.good]
    if not running.entry.good:
        count(disk, running.entry.name, running.entry.blessed().name)
    device.running = running.entry.blessed()


def running_hash(device):
    return look(Disk.at(device.path), "a", device.tree).root_hash


def stage(device, bundle, answers=None, **changed):
    path, found, payload = bundle
    order = replace(order_for(found, payload, running_hash(device)), **changed)
    steps = []
    with served(path, answers) as ranges:
        slot = Stage(device.tree, order, lambda *step: steps.append(step), "nobody").run(ranges)
    return slot, steps, order


def root_in(device, slot, size):
    path, offset, _ = Slot.of(Disk.at(device.path), slot).root
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def test_an_order_is_told_and_understood(bundle):
    _, found, payload = bundle
    order = found.order(payload, found.plans[1].source.root_hash)
    assert orders.parse(order.dump()) == order
    assert [len(file.plans) for file in (order.root, order.uki)] == [2, 2]


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"version": 1}', "[" * 100_000])
def test_what_is_no_order_is_refused(text):
    with pytest.raises(BundleError) as caught:
        orders.parse(text)
    assert caught.value.reason == "order"


def test_a_release_is_staged_sealed_and_started(device, bundle):
    slot, steps, order = stage(device, bundle)
    assert slot == "b"
    assert steps[-1] == ("verify", 1, 1, 0)
    assert max(step[3] for step in steps) < order.transfer + 1
    assert root_in(device, "b", order.root.size) == root_of("1.1.0")
    assert device.names() == [device.running.name], "nothing starts it yet"
    assert seal(device.tree, order) == "b"
    new = next(image for image in Disk.at(device.path).images() if image.root_hash == order.root_hash)
    assert (new.slot, new.version, new.entry.left) == ("b", "1.1.0", 3)
    assert device.boot() == "1.1.0"
    assert seal_again(device, order) == "update-same"


def put(device, name, data=b"no image"):
    """A file into the loader's folder, as whoever can write the ESP may."""
    descriptor = os.open(device.path, os.O_RDWR)
    try:
        device.editor(descriptor).add(f"{FOLDER}/{name}", [data], len(data), epoch=0)
    finally:
        os.close(descriptor)


def test_a_damaged_file_does_not_keep_the_name_of_an_entry(device, bundle):
    slot, _, order = stage(device, bundle)
    for name in (entry(order).name, entry(order).counted(0, 3).name, "readme.efi"):
        put(device, name)
    put(device, COMING)
    assert seal(device.tree, order) == slot
    assert device.boot() == "1.1.0"
    assert sorted(device.names()) == sorted(
        [device.running.name, "readme.efi", Entry(image_name(device.root_hash), 4).name]
    )


def test_a_counter_that_is_written_otherwise_is_one(device):
    old = device.running
    name = f"{old.stem}+04.efi"
    descriptor = os.open(device.path, os.O_RDWR)
    device.editor(descriptor).rename(f"{FOLDER}/{old.name}", name)
    os.close(descriptor)
    (image,) = Disk.at(device.path).images()
    assert (image.entry.name, image.entry.good) == (name, True)
    assert examine(device.tree).slots[0].entry == "sound"
    count(Disk.at(device.path), image.entry.name, image.entry.given_up().name)
    assert device.names() == [f"{old.stem}+0-4.efi"]


@pytest.mark.parametrize("pattern", ["name", "NAME", "stem*"])
def test_what_somebody_chose_at_the_menu_is_what_starts_next(device, pattern):
    device.install("1.1.0", "b")
    old = device.running.name
    chosen = {"name": old, "NAME": old.upper(), "stem*": f"{device.running.stem}*"}[pattern]
    variable = device.tree / EFIVARS / "LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    assert look(Disk.at(device.path), "a", device.tree).next.version == "1.1.0"
    variable.write_bytes(b"\7\0\0\0" + f"{chosen}\0".encode("utf-16-le"))
    boot = look(Disk.at(device.path), "a", device.tree)
    assert (boot.next.version, boot.images[0].version) == ("1.0.0", "1.1.0")
    variable.write_bytes(b"\7\0\0\0" + "other.efi\0".encode("utf-16-le"))
    assert look(Disk.at(device.path), "a", device.tree).next.version == "1.1.0"


def seal_again(device, order):
    with pytest.raises(RefusedError) as caught:
        seal(device.tree, order)
    return caught.value.reason


def test_a_delta_fetches_less_than_the_whole(device, bundle):
    _, found, _ = bundle
    whole, delta = found.plans
    _, steps, _ = stage(device, bundle)
    assert max(step[3] for step in steps) <= delta.transfer < whole.transfer


def test_a_process_that_is_killed_while_it_makes_windows_is_told(device, bundle, monkeypatch):
    """As the kernel does it when memory is short: the disk is not to blame."""
    monkeypatch.setattr("daemon.slots.worker._make", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DiskError) as caught:
        stage(device, bundle)
    assert (caught.value.reason, caught.value.retryable) == ("slots-worker", True)


def test_a_process_that_talks_without_end_is_ended(device, bundle, monkeypatch):
    line = b'{"step": "root", "done": 1, "of": 2, "fetched": 3}\n'

    def talk(*told):
        while True:
            os.write(told[4], line)

    monkeypatch.setattr(worker, "main", talk)
    with pytest.raises(DiskError) as caught:
        stage(device, bundle)
    assert caught.value.reason == "slots-worker"


def test_a_counter_that_changes_meanwhile_does_not_matter(device, bundle, monkeypatch):
    """The part calls good what runs while somebody begins an update."""
    path = f"EFI/Linux/{device.running.name}"

    def meanwhile(disk, *given):
        with disk.esp().changing() as esp:
            esp.rename(path, replace(device.running, left=3, done=1).name)
        invalidate(disk, *given)

    monkeypatch.setattr("daemon.slots.stage.invalidate", meanwhile)
    _, found, _ = bundle
    _, steps, _ = stage(device, bundle)
    assert max(step[3] for step in steps) <= found.plans[1].transfer


def test_what_is_there_is_not_fetched_again(device, bundle):
    stage(device, bundle)
    _, steps, order = stage(device, bundle)
    assert max(step[3] for step in steps) == 0
    assert seal(device.tree, order) == "b"


def test_sealing_twice_changes_nothing(device, bundle):
    _, _, order = stage(device, bundle)
    seal(device.tree, order)
    before = device.path.read_bytes()
    seal(device.tree, order)
    assert device.path.read_bytes() == before


def test_a_drop_leaves_the_running_version_and_is_taken_up_again(device, bundle):
    path = bundle[0]
    asked = []

    def drops(offset, length):
        asked.append(offset)
        if len(asked) > 2:
            raise MixosError("the line was cut", reason="source-cut", retryable=True)
        with path.open("rb") as stream:
            return os.pread(stream.fileno(), length, offset)

    with pytest.raises(MixosError) as caught:
        stage(device, bundle, drops)
    assert (caught.value.reason, caught.value.retryable) == ("source-cut", True)
    assert [image.version for image in Disk.at(device.path).images()] == ["1.0.0"]
    _, _, order = stage(device, bundle)
    seal(device.tree, order)
    assert device.boot() == "1.1.0"


def test_a_running_slot_that_is_damaged_does_not_matter(device, bundle):
    """Its bytes are what a delta begins with: what they cannot make is fetched whole."""
    path, offset, _ = Slot.of(Disk.at(device.path), "a").root
    with path.open("r+b") as stream:
        stream.seek(offset + 4096)
        stream.write(b"damaged!" * 100)
    _, _, order = stage(device, bundle)
    assert root_in(device, "b", order.root.size) == root_of("1.1.0")


def test_bytes_that_are_not_those_of_the_release_are_refused(device, bundle):
    path, _, payload = bundle
    data = bytearray(path.read_bytes())
    for at in range(payload, len(data)):
        data[at] ^= 1
    with pytest.raises(MixosError) as caught:
        stage(device, bundle, lambda offset, length: bytes(data[offset : offset + length]))
    assert caught.value.reason == "bundle-damaged"


def test_a_manifest_that_lies_about_the_root_is_noticed_before_it_starts(device, bundle):
    with pytest.raises(DiskError) as caught:
        stage(device, bundle, root_hash=bytes(32))
    assert caught.value.reason == "slots-readback"
    assert device.boot() == "1.0.0"


def test_a_kernel_image_of_another_version_is_not_started(device, bundle):
    with pytest.raises(DiskError) as caught:
        stage(device, bundle, version="1.2.0")
    assert caught.value.reason == "slots-kernel"


def test_what_runs_is_not_installed_again(device, bundle):
    with pytest.raises(RefusedError) as caught:
        stage(device, bundle, root_hash=running_hash(device))
    assert caught.value.reason == "update-same"


def test_the_good_version_is_kept_while_another_is_on_trial(tmp_path, bundle):
    device = Device(tmp_path, "1.0.0", root_of("1.0.0"))
    device.boot()
    with pytest.raises(RefusedError) as caught:
        stage(device, bundle)
    assert caught.value.reason == "update-trial"


def test_the_version_that_somebody_went_back_to_is_kept(device, bundle):
    """What runs has no starts left: without the other version there would be nothing but the rescue entry."""
    device.rescue()
    device.install("0.9.0", "b", Entry("older", GOOD))
    (running,) = [image for image in Disk.at(device.path).images() if image.version == "1.0.0"]
    count(Disk.at(device.path), running.entry.name, running.entry.given_up().name)
    with pytest.raises(RefusedError) as caught:
        stage(device, bundle)
    assert caught.value.reason == "update-left"
    assert device.next().version == "0.9.0"
    count(Disk.at(device.path), running.entry.given_up().name, running.entry.renewed().name)
    assert stage(device, bundle)[0] == "b"
    assert device.next().version == "1.0.0"


def test_a_release_that_is_too_large_is_refused_before_anything_is_written(device, bundle):
    before = device.path.read_bytes()
    _, found, payload = bundle
    order = order_for(found, payload, running_hash(device))
    huge = replace(order.root, target=replace(order.root.target, size=1 << 30))
    with pytest.raises(RefusedError) as caught:
        stage(device, bundle, root=huge)
    assert caught.value.reason == "update-size"
    assert device.path.read_bytes() == before


def test_what_was_in_the_slot_is_not_found_any_more(device, bundle):
    """From the first write on: a cut must not leave a slot that starts and holds half of something else."""
    old = device.install("0.9.0", "b", Entry("old", 4))

    def fails(offset, length):
        raise MixosError("no more", reason="source-cut")

    with pytest.raises(MixosError):
        stage(device, bundle, fails)
    disk = Disk.at(device.path)
    assert disk.holds("b") != old
    assert [image.version for image in disk.images()] == ["1.0.0"]


def test_a_slot_that_was_written_over_is_not_sealed(device, bundle):
    _, _, order = stage(device, bundle)
    path, offset, _ = Slot.of(Disk.at(device.path), "b").root
    with path.open("r+b") as stream:
        stream.seek(offset + kernel_place(order.root.size))
        stream.write(b"other")
    with pytest.raises(DiskError) as caught:
        seal(device.tree, order)
    assert caught.value.reason == "slots-readback"
    assert device.boot() == "1.0.0"


def test_the_tree_is_the_one_that_the_kernel_wants(device, bundle):
    _, _, order = stage(device, bundle)
    seal(device.tree, order)
    descriptor = os.open(device.path, os.O_RDONLY)
    try:
        table = gpt.read(descriptor)
        place, hashes = table.find("mixos-root-b"), table.find("mixos-verity-b")
        tree = verity.build(descriptor, order.root.size, order.salt, place.offset)
        assert os.pread(descriptor, len(tree.hashes), hashes.offset) == tree.hashes
        assert (place.id, hashes.id) == verity.partition_ids(order.root_hash)
        image = os.pread(descriptor, order.uki.size, place.offset + kernel_place(order.root.size))
        assert uki.read_uki(image).root_hash == order.root_hash
    finally:
        os.close(descriptor)
    assert all(read_name(name) for name in device.names())


# --- Secure Boot ------------------------------------------------------------------------------------------------------


def knows(device, on=1, **databases):
    """What firmware has in its variables."""
    for name, value in {"SecureBoot": bytes([on]), **databases}.items():
        vendor = siglist.VARIABLES.get(name, siglist.VARIABLES["PK"])
        (device.tree / EFIVARS / f"{name}-{vendor}").write_bytes(b"\x27\0\0\0" + value)


def hashes_of(*images):
    return siglist.write([siglist.Signature(siglist.SHA256, OWNER, pe.authenticode(image)) for image in images])


def kernel_of(device, bundle):
    """The kernel image of the release, as it is in the slot."""
    _, _, order = stage(device, bundle)
    return kernel(device.tree, Slot.of(Disk.at(device.path), "b"), order), order


def refused(call, *arguments):
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    assert caught.value.reason == "update-refused"
    return caught.value.message


def test_a_kernel_image_that_firmware_would_not_start_is_not_staged(device, bundle):
    knows(device)
    assert "neither its hash nor who signed it is in db" in refused(stage, device, bundle)
    assert [entry.stem for entry in map(read_name, device.names())] == [device.running.stem]


def test_what_was_revoked_since_it_was_staged_is_not_sealed(device, bundle):
    knows(device, on=0)
    image, order = kernel_of(device, bundle)
    names = device.names()
    knows(device, db=hashes_of(image), dbx=hashes_of(image))
    assert "its hash is in dbx" in refused(seal, device.tree, order)
    assert device.names() == names
    knows(device, db=hashes_of(image), dbx=hashes_of(pe_image([(".text", b"other")])))
    assert seal(device.tree, order) == "b"
    assert device.boot() == "1.1.0"


def test_databases_of_a_firmware_that_enforces_nothing_are_not_asked(device, bundle):
    image, _ = kernel_of(device, bundle)
    assert variables.refusal(image, device.tree) is None
    knows(device, on=0, dbx=hashes_of(image))
    assert variables.refusal(image, device.tree) is None
    knows(device)
    assert variables.refusal(image, device.tree) is not None


# --- from the rescue entry --------------------------------------------------------------------------------------------


@pytest.fixture
def rescued(tmp_path):
    """1.0.0 in slot a and 1.0.1 in slot b were started in vain."""
    return in_vain(tmp_path, "1.0.0", "1.0.1")


def in_vain(base, first, second):
    device = Device(base, first, root_of(first))
    device.install(second, "b", root=root_of(second))
    device.rescue()
    for _ in range(6):
        device.boot()
    device.boot_rescue()
    return device


def kept_hash(device, version):
    return next(image.root_hash for image in Disk.at(device.path).images() if image.version == version)


def test_from_the_rescue_entry_the_older_version_is_replaced(rescued, bundle):
    path, found, payload = bundle
    order = order_for(found, payload, kept_hash(rescued, "1.0.1"))
    with served(path) as ranges:
        assert Stage(rescued.tree, order, lambda *step: None, "nobody").run(ranges) == "a"
    assert rescued.starts() == {"1.0.1": (0, 3)}, "nothing starts what is only staged"
    assert seal(rescued.tree, order) == "a"
    assert rescued.starts() == {"1.1.0": (3, 0), "1.0.1": (0, 3)}
    assert rescued.boot() == "1.1.0"


def test_from_the_rescue_entry_a_version_is_repaired_where_it_is(tmp_path, bundle):
    path, found, payload = bundle
    device = in_vain(tmp_path, "1.1.0", "1.0.1")
    order = order_for(found, payload, kept_hash(device, "1.0.1"))
    with served(path) as ranges:
        assert Stage(device.tree, order, lambda *step: None, "nobody").run(ranges) == "a"
    assert seal(device.tree, order) == "a"
    assert device.starts() == {"1.1.0": (3, 0), "1.0.1": (0, 3)}


def test_without_a_slot_that_runs_nothing_is_written_but_from_the_rescue_entry(rescued, bundle):
    path, found, payload = bundle
    (rescued.tree / "proc/cmdline").write_text("root=/dev/vda2\n")
    before = rescued.path.read_bytes()
    with served(path) as ranges, pytest.raises(RefusedError) as caught:
        Stage(rescued.tree, order_for(found, payload, b""), lambda *step: None, "nobody").run(ranges)
    assert caught.value.reason == "update-slot"
    assert rescued.path.read_bytes() == before
