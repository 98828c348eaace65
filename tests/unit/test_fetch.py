"""Fetching: the hash decides, downloads resume, and every refusal says what was tried."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buildsys import download
from buildsys.config.model import Fetch
from buildsys.events import Event, Fetched, Note
from buildsys.fetch import Fetcher, pip_download
from buildsys.files import exclusive
from buildsys.lock import Source
from common.errors import ConfigError, FetchError
from common.safe import without_password
from common.tomlfile import parse

BODY = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY in the way that the path asks for; counts requests and bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_error(405)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        first = sum(path == self.path for path, _ in self.server.requests) == 1
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        body, status = BODY, 200
        if self.path == "/missing" or (self.path == "/flaky" and first):
            status, body, start = (404 if self.path == "/missing" else 503), b"", 0
        elif self.path == "/evil":
            body, start = b"x" * len(BODY), 0
        elif self.path == "/encoded":
            body, start = gzip.compress(BODY, mtime=0), 0
        elif self.path == "/redirect":
            status, body, start = 302, b"", 0
        elif self.path == "/endless":
            body, start = BODY * 8, 0
        elif start and self.path != "/norange":
            status = 206
        else:
            start = 0
        self.send_response(status)
        if status == 206 and self.path != "/shifted":
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        elif status == 206:
            self.send_header("Content-Range", f"bytes 0-{len(body) - start - 1}/{len(body)}")
        if self.path == "/encoded":
            self.send_header("Content-Encoding", "gzip")
        if self.path == "/redirect":
            self.send_header("Location", "http://[::1/x")
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            pieces = [body[at : at + 70_000] for at in range(0, len(body), 70_000)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
        else:
            self.send_header("Content-Length", str(len(body) - start + 10 * (self.path == "/boast")))
        self.end_headers()
        if self.path == "/trickle":
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.01)
        data = body[start:]
        if self.path == "/cut" and first:
            data = data[: len(data) // 2]
        self.server.sent += len(data)
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def source(*urls: str, sha: str = SHA, size: int | None = len(BODY)) -> Source:
    data = {"name": "demo", "version": "1", "sha256": sha, "file": "demo.tar", "urls": urls, "size": size}
    return Source.model_validate({key: value for key, value in data.items() if value is not None})


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path, lambda event: None, backoff=0.0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_file_is_fetched_once_and_named_by_its_hash(server: Server, fetcher: Fetcher, tmp_path: Path):
    wanted = source(server.url("good"))
    assert fetcher.get(wanted).read_bytes() == BODY
    assert fetcher.get(wanted) == tmp_path / SHA
    assert len(server.requests) == 1
    assert names(tmp_path) == [SHA]


def test_a_cut_download_resumes_where_it_ended(server: Server, fetcher: Fetcher):
    assert fetcher.get(source(server.url("cut"))).read_bytes() == BODY
    assert [wanted for _, wanted in server.requests] == [None, f"bytes={len(BODY) // 2}-"]
    assert server.sent == len(BODY)


def test_a_server_without_ranges_starts_over(server: Server, fetcher: Fetcher, tmp_path: Path):
    (tmp_path / f"{SHA}.partial").write_bytes(BODY[:1000])
    assert fetcher.get(source(server.url("norange"))).read_bytes() == BODY


@pytest.mark.parametrize("size", [1000, len(BODY), len(BODY) + 9])
def test_the_beginning_of_another_file_is_not_fatal(server: Server, fetcher: Fetcher, tmp_path: Path, size: int):
    (tmp_path / f"{SHA}.partial").write_bytes(b"x" * size)
    assert fetcher.get(source(server.url("good"))).read_bytes() == BODY
    assert names(tmp_path) == [SHA]


def test_a_partial_answer_to_another_question_is_not_appended(server: Server, fetcher: Fetcher, tmp_path: Path):
    (tmp_path / f"{SHA}.partial").write_bytes(BODY[:1000])
    assert fetcher.get(source(server.url("shifted"))).read_bytes() == BODY
    assert [wanted for _, wanted in server.requests] == ["bytes=1000-", None]


def test_what_a_server_calls_its_encoding_does_not_change_the_file(server: Server, fetcher: Fetcher, tmp_path: Path):
    compressed = gzip.compress(BODY, mtime=0)
    wanted = source(server.url("encoded"), sha=hashlib.sha256(compressed).hexdigest(), size=len(compressed))
    assert fetcher.get(wanted).read_bytes() == compressed


def test_a_full_disk_and_a_forbidden_folder_are_errors_not_tracebacks(server: Server, fetcher: Fetcher, tmp_path: Path):
    (tmp_path / f"{SHA}.partial").symlink_to("/dev/full")
    with pytest.raises(FetchError) as caught:
        fetcher.get(source(server.url("norange")))
    assert caught.value.reason == "disk-full"
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError) as caught:
        Fetcher(tmp_path / "file" / "x", lambda event: None).get(source(server.url("good")))
    assert caught.value.reason == "fetch-write"


def test_stopping_ends_a_download_and_the_wait_for_another_one(server: Server, fetcher: Fetcher):
    wanted = source(server.url("good"))

    def get() -> None:
        with pytest.raises(FetchError):
            fetcher.get(wanted)

    with exclusive(fetcher.distfiles / f".{SHA}.lock", lambda: None):
        thread = threading.Thread(target=get)
        thread.start()
        fetcher.stop()
        thread.join(10)
        assert not thread.is_alive()
    with pytest.raises(FetchError) as caught:
        fetcher.get(wanted)
    assert caught.value.reason == "fetch-stopped"


def test_a_server_error_is_tried_again(server: Server, fetcher: Fetcher):
    assert fetcher.get(source(server.url("flaky"))).read_bytes() == BODY
    assert len(server.requests) == 2


def test_wrong_bytes_are_deleted_and_both_hashes_shown(server: Server, fetcher: Fetcher, tmp_path: Path):
    with pytest.raises(FetchError) as caught:
        fetcher.get(source(server.url("evil")))
    assert caught.value.reason == "fetch-failed"
    assert SHA in caught.value.message
    assert hashlib.sha256(b"x" * len(BODY)).hexdigest() in caught.value.message
    assert names(tmp_path) == []


def test_more_bytes_than_locked_are_refused_early(server: Server, fetcher: Fetcher):
    with pytest.raises(FetchError) as caught:
        fetcher.get(source(server.url("endless")))
    assert "longer than" in caught.value.message


def test_the_next_place_is_tried_and_all_are_listed(server: Server, fetcher: Fetcher):
    dead = "http://127.0.0.1:9/dead"
    assert fetcher.get(source(server.url("missing"), dead, server.url("good"))).read_bytes() == BODY
    with pytest.raises(FetchError) as caught:
        fetcher.get(source(server.url("missing"), dead, sha="0" * 64))
    assert server.url("missing") in caught.value.message
    assert dead in caught.value.message
    assert caught.value.retryable


def test_a_mirror_is_asked_first(server: Server, tmp_path: Path):
    seen: list[Event] = []
    fetcher = Fetcher(tmp_path, seen.append, mirrors=(server.url("mirror/"),), backoff=0.0)
    fetcher.get(source(server.url("good")))
    assert [path for path, _ in server.requests] == [f"/mirror/{SHA}"]
    assert Fetched("demo", server.url(f"mirror/{SHA}")) in seen


def test_a_damaged_distfile_is_named_and_fetched_again(server: Server, tmp_path: Path):
    (tmp_path / SHA).write_bytes(b"rot")
    seen: list[Event] = []
    assert Fetcher(tmp_path, seen.append).get(source(server.url("good"))).read_bytes() == BODY
    assert any(isinstance(event, Note) and event.level == "warning" for event in seen)


def test_offline_never_asks(server: Server, tmp_path: Path):
    with pytest.raises(FetchError) as caught:
        Fetcher(tmp_path, lambda event: None, offline=True).get(source(server.url("good")))
    assert caught.value.reason == "fetch-offline"
    assert server.requests == []
    (tmp_path / SHA).write_bytes(BODY)
    assert Fetcher(tmp_path, lambda event: None, offline=True).get(source()).read_bytes() == BODY


def test_wheel_tags_become_pip_options():
    argv = pip_download("psutil-7.0.0-cp313-cp313-musllinux_1_2_x86_64.whl")
    assert argv[argv.index("--platform") + 1] == "musllinux_1_2_x86_64"
    assert argv[argv.index("--python-version") + 1] == "3.13"
    assert "--platform" not in pip_download("click-8.1.8-py3-none-any.whl")


# case: B15
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://a.example/x", "http://a.example/x"),
        ("apt:http://me:s3cret@a.example:80/pool/x: HTTP 404", "apt:http://me:***@a.example:80/pool/x: HTTP 404"),
        ("no place\n  https://:token@h/ and mail to me@h", "no place\n  https://:***@h/ and mail to me@h"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("http://me:p@ss@host/x", "http://me:***@host/x"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("see http://host/?mail=a@b", "see http://host/?mail=a@b"),
    ],
)
def test_passwords_in_places_are_not_shown(text: str, shown: str):
    assert without_password(text) == shown


# case: B15
def test_the_password_of_a_mirror_is_not_told(server: Server, tmp_path: Path):
    seen: list[Event] = []
    base = server.url("").replace("://", "://me:s3cret@")
    fetcher = Fetcher(tmp_path, seen.append, mirrors=(f"{base}missing/..", base), backoff=0.0)
    with pytest.raises(FetchError) as caught:
        fetcher.get(source(f"{base}missing", sha="f" * 64))
    assert "s3cret" not in caught.value.message
    fetcher.get(source(f"{base}good"))
    assert any(isinstance(event, Fetched) for event in seen)
    assert "s3cret" not in repr(seen)


# case: B6
@pytest.mark.parametrize("bad", ["http://[::1/x", "http://h:99999999/x", "http://%zz:x@/", "http://a..b/", "http:///x"])
def test_an_address_that_is_none_is_one_place_less(server: Server, fetcher: Fetcher, bad: str):
    assert fetcher.get(source_of(bad, server.url("redirect"), server.url("good"))).read_bytes() == BODY
    assert download.head(bad) != "yes"


def source_of(*urls: str) -> Source:
    """A source whose addresses nobody has checked."""
    return source().model_copy(update={"urls": urls})


# case: B6
@pytest.mark.parametrize(
    "bad", ["http://[::1/x", "http://h:99999999/x", "ftp://h/", "http:///x", "http://", "http://a b/", "http://é/"]
)
def test_a_mirror_that_is_no_address_is_named_with_its_line(tmp_path: Path, bad: str):
    with pytest.raises(ConfigError) as caught:
        parse(f'\nmirrors = ["{bad}"]\n', tmp_path / "x.toml", Fetch)
    assert caught.value.reason == "config-value"
    assert "x.toml:2:" in caught.value.message


# case: B15
def test_the_password_in_a_mirror_that_is_wrong_is_not_told(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        parse('mirrors = ["ftp://me:s3cret@host/"]', tmp_path / "x.toml", Fetch)
    assert "s3cret" not in caught.value.message


# case: B16
def test_a_place_that_is_too_slow_is_left(server: Server, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.2)
    assert fetcher.get(source(server.url("trickle"), server.url("norange"))).read_bytes() == BODY


# case: B16
@pytest.mark.parametrize("size", [len(BODY), None])
def test_the_hash_decides_not_the_length_that_a_server_says(server: Server, fetcher: Fetcher, size: int | None):
    assert fetcher.get(source(server.url("boast"), size=size)).read_bytes() == BODY


def test_an_answer_in_chunks(server: Server, fetcher: Fetcher):
    assert fetcher.get(source(server.url("chunked"))).read_bytes() == BODY


# case: B16
def test_a_server_that_does_not_answer_head_is_asked_for_the_file(server: Server):
    assert download.head(server.url("good")) == "yes"
    assert download.head(server.url("missing")) == "HTTP 404"


# case: B10
def test_what_is_there_is_read_without_writing(server: Server, tmp_path: Path):
    (tmp_path / SHA).write_bytes(BODY)
    for offline in (True, False):
        Fetcher(tmp_path, lambda event: None, offline=offline).get(source(server.url("good")))
    assert [path.name for path in tmp_path.iterdir()] == [SHA]


# case: B10
def test_locks_are_the_groups_where_the_umask_says_so(tmp_path: Path):
    old = os.umask(0o002)
    try:
        with exclusive(tmp_path / "lock", lambda: None):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o660
    finally:
        os.umask(old)
