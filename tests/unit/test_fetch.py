"""Fetching: the hash decides, downloads resume, and every refusal says what was tried."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buildsys.events import Event, Fetched, Note
from buildsys.fetch import Fetcher, pip_download, without_password
from buildsys.files import exclusive
from buildsys.lock import Source
from common.errors import FetchError

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
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://a.example/x", "http://a.example/x"),
        ("apt:http://me:s3cret@a.example:80/pool/x: HTTP 404", "apt:http://me:***@a.example:80/pool/x: HTTP 404"),
        ("no place\n  https://:token@h/ and mail to me@h", "no place\n  https://:***@h/ and mail to me@h"),
        ("http://host:80/a@b", "http://host:80/a@b"),
    ],
)
def test_passwords_in_places_are_not_shown(text: str, shown: str):
    assert without_password(text) == shown


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
