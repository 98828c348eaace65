"""A release out of a bundle on web servers that others have written, by `mixos-fetch` as an account without rights."""

import json
import os
import pwd
import random
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest

from buildsys.run import kill_group, spawn
from common.bundle import windows
from common.bundle.ranges import Files, Ranges
from common.errors import MixosError
from tests import waiting
from tests.fetching import Running
from tests.plans import image, planned, reader, text

NOBODY = "nobody"


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "www"
    found.mkdir()
    (found / "timestamp.json").write_bytes(b"{}")
    return found


@pytest.fixture(params=["busybox", "python"])
def served(request, folder, port):
    """The URL of the folder, and whether its server knows ranges."""
    argv = {
        "busybox": [shutil.which("busybox"), "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", os.fspath(folder)],
        "python": [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", folder],
    }[request.param]
    with (folder.parent / "log").open("wb") as log:
        process = spawn(argv, log=log)

    def listens():
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    try:
        waiting.until(listens)
        yield f"http://127.0.0.1:{port}", request.param == "busybox"
    finally:
        kill_group(process)
        process.wait(30)


def test_a_file_is_made_of_the_old_one_and_what_its_plan_fetches(served, folder):
    url, ranged = served
    blocks = [text(number, 128 << 10) for number in range(60)]
    old, new = image(blocks), image([*blocks[:30], text(99, 300_000), *blocks[30:]])
    plan, payload = planned(new, old)
    others = random.Random(1).randbytes(9 << 20)  # plans for other devices
    begin = len(others)
    (folder / "mixos-1.1.mixb").write_bytes(others + plan + payload + others[:5000])
    account = NOBODY if os.geteuid() == 0 else None
    with Running("ranges", json.dumps({"url": f"{url}/mixos-1.1.mixb"}), account) as running:
        source = Ranges(running.descriptor, running.descriptor)
        assert source.read(0, 16) == others[:16]
        target = windows.Target.of(new)
        out = bytearray(target.size)

        def write(offset, data):
            out[offset : offset + len(data)] = data

        wanted = windows.missing(target, reader(bytes(target.size)))
        read = windows.read_plan(source.read(begin, len(plan)))

        def fetch(offset, length):
            return source.read(begin + len(plan) + offset, length)

        windows.apply(read, target, wanted, reader(old), fetch, write)
        assert bytes(out) == new
        assert source.fetched == 16 + len(plan) + len(payload)
        if ranged:
            (folder / "mixos-1.1.mixb").write_bytes(others[::-1])
            with pytest.raises(MixosError) as caught:
                source.read(begin // 2, 10)
            assert caught.value.reason == "source-changed"
        assert running.end() == 0


def test_small_files(served):
    url, _ = served
    with Running("files", json.dumps({"url": url})) as running:
        files = Files(running.descriptor, running.descriptor)
        assert files.get("timestamp.json", 10) == b"{}"
        for name, most, reason in (("2.root.json", 10, "source-missing"), ("timestamp.json", 1, "source-too-big")):
            with pytest.raises(MixosError) as caught:
                files.get(name, most)
            assert caught.value.reason == reason


def test_it_gives_up_all_that_it_does_not_need():
    if os.geteuid() != 0:
        pytest.skip("other accounts need root")
    with Running("ranges", '{"url": "http://127.0.0.1:9/"}', NOBODY) as running:

        def status():
            return Path(f"/proc/{running.pid}/status").read_text()

        waiting.until(lambda: "NoNewPrivs:\t1" in status())
        account = pwd.getpwnam(NOBODY)
        for name, number in (("Uid", account.pw_uid), ("Gid", account.pw_gid)):
            assert re.search(rf"^{name}:(\t{number}){{4}}$", status(), re.MULTILINE)
        assert re.search(r"^Groups:\s*$", status(), re.MULTILINE)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert re.search(rf"^{name}:\t0+$", status(), re.MULTILINE)
        limits = Path(f"/proc/{running.pid}/limits").read_text()
        assert re.search(r"^Max file size +0 +0 ", limits, re.MULTILINE)
        assert running.end() == 0


def test_without_its_account_it_does_not_run():
    if os.geteuid() != 0:
        pytest.skip("other accounts need root")
    with Running("ranges", '{"url": "http://127.0.0.1:9/"}', "no-such-account") as running:
        assert running.end() == MixosError.exit_code
        assert running.said()[0]["error"]["reason"] == "account-missing"
