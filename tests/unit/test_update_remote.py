"""A bundle and small files from a web server: right bytes or the right error, whatever that and the way to it do."""

import contextlib
import datetime
import json
import os
import random
import socket
import ssl
import threading
from functools import partial

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.addresses import address
from common.bundle import ranges
from common.bundle.ranges import Files, Ranges
from common.errors import BundleError, MixosError, UsageError
from daemon import fetch
from daemon.parts.update import link
from daemon.parts.update.http import Client, Clock, check_url, date, parse_head
from daemon.parts.update.link import Limits, SourceError
from daemon.parts.update.remote import AGAIN, FIRST, OPEN, Folder, Source, parse
from tests import webserver
from tests.fetching import Running
from tests.webserver import Web

FAULTS = 1000 if "MIXOS_WHOLE" in os.environ else 60  # seeds of the sweep
QUICK = Limits(address=2.0, reach=2.0, answer=0.3, silence=0.3, slow=0.2, least=1024)
CALM = Limits(slow=600.0)  # where nothing is to run out of time on a busy host
FILE = "/mixos-1.1.mixb"


class Slept:
    """A clock that does not wait."""

    def __init__(self):
        self.now, self.pauses = 1000.0, []

    def clock(self):
        return Clock(lambda: self.now, self.sleep, lambda: 0.5)

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += max(0.0, seconds)


class Fetch:
    """A source of a URL, and what it said."""

    def __init__(self, url, limits=CALM, **more):
        self.time, self.told, self.alive = Slept(), [], 0
        clock = self.time.clock()
        remote = parse(json.dumps({"url": url, **more}))
        self.client = Client(remote, limits, clock)
        self.make = partial(Source, self.client, clock=clock, alive=self.sign, told=self.tell)
        self.source = self.make(remote.url)
        self.folder = Folder(self.make, remote.url)

    def tell(self, message, pause):
        self.told.append((message, pause))

    def sign(self):
        self.alive += 1

    def read(self, offset, length):
        return self.source.read(offset, length)


def content(size=300_000, seed=0):
    return random.Random(seed).randbytes(size)


def refused(call, *given):
    with pytest.raises(SourceError) as caught:
        call(*given)
    return caught.value


# -- the ordinary ----------------------------------------------------------------------------------------------------


def test_what_is_read_in_turn_comes_by_few_requests():
    data = content(12 << 20)
    web = Web({FILE: data})
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        for at in range(0, len(data), 100_000):
            assert fetch.read(at, 100_000) == data[at : at + 100_000]
        assert fetch.read(len(data), 10) == b""
        fetch.source.close()
    sizes = [FIRST, FIRST * 4, FIRST * 16, FIRST * 64, OPEN]
    assert len(web.asked) <= len(sizes) + 1
    assert web.connections == 1
    assert web.asked[-1].fields["range"].endswith("-")
    assert (fetch.source.fetched, fetch.source.skipped) == (len(data), 0)
    assert all(one.fields["if-range"] == '"one"' for one in web.asked[1:])


def test_a_small_gap_is_read_over_and_a_jump_is_a_request():
    data = content(2 << 20)
    web = Web({FILE: data})
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        assert fetch.read(0, 1000) == data[:1000]
        assert fetch.read(5000, 1000) == data[5000:6000]
        assert len(web.asked) == 1
        assert fetch.read(1 << 20, 10) == data[1 << 20 : (1 << 20) + 10]
        assert fetch.read(500, 10) == data[500:510]
        assert [one.fields["range"] for one in web.asked] == [
            f"bytes=0-{FIRST - 1}",
            f"bytes={1 << 20}-{(1 << 20) + FIRST - 1}",
            f"bytes=500-{500 + FIRST - 1}",
        ]
        assert web.connections == 1  # so little is read to its end
        assert fetch.source.fetched == fetch.source.skipped + 2020


@pytest.mark.parametrize("size", [0, 1, FIRST, FIRST + 1])
@pytest.mark.parametrize("ranged", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_the_end_of_a_file(size, ranged, chunked):
    data = content(size)
    web = Web({FILE: data}, ranges=ranged)

    def in_chunks(_web, answer):
        answer.chunked = chunked and answer.status != 416

    web.faults = [in_chunks] * 20
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        assert fetch.read(0, size + 100) == data
        assert fetch.read(size, 1) == b""
        assert fetch.read(size + 10, 1) == b""
        assert fetch.read(max(0, size - 3), 100) == data[max(0, size - 3) :]
    assert fetch.told == []


def test_bytes_behind_the_end_are_none():
    web = Web({FILE: content(1000)})
    with web.serving() as url:
        assert Fetch(url + FILE).read(5000, 10) == b""
    assert web.asked[0].status == 416


def test_connections_that_the_server_ends_are_made_anew_without_a_failure():
    data = content()
    web = Web({FILE: data}, persistent=False)
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        assert fetch.read(0, len(data)) == data
        assert fetch.read(10, 10) == data[10:20]
    assert fetch.told == []
    assert web.connections == len(web.asked)


def test_it_is_the_same_over_tls(authority):
    data = content(1 << 20)
    web = Web({FILE: data}, tls=authority.server)
    with web.serving() as url:
        fetch = Fetch(url + FILE, ca=authority.pem)
        for at in range(0, len(data), 70_000):
            assert fetch.read(at, 70_000) == data[at : at + 70_000]
        assert fetch.told == []
        assert web.connections == 1
        assert Fetch(url + FILE, ca=authority.own).read(0, 10) == data[:10]  # its own one is enough, whoever issued it
        error = refused(Fetch(url + FILE).read, 0, 1)  # the system does not know it
        assert (error.reason, error.retryable) == ("source-tls", True)  # its clock may be wrong
        assert refused(Fetch(url.replace("127.0.0.1", "localhost") + FILE, ca=authority.pem).read, 0, 1).reason == (
            "source-tls"  # another name than that of the certificate
        )
        assert len(web.asked) == len([one for one in web.asked if one.sent])
        assert refused(Fetch(url + FILE, ca="no certificate").read, 0, 1).reason == "source-order"
    plain = Web({FILE: data})
    with plain.serving() as url:
        fetch = Fetch(url.replace("http:", "https:") + FILE, Limits(reach=0.3, attempts=2))
        assert refused(fetch.read, 0, 1).reason in ("source-tls", "source-slow", "source-unreachable")
        assert len(fetch.told) == 1


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority (pem), what a server with a certificate of it needs (server), and that one (own)."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)

    def named(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def made(name, public, key, extension):
        begin = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named("root")).public_key(public)
        begin = begin.serial_number(x509.random_serial_number()).add_extension(extension, critical=False)
        begin = begin.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        return begin.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = made("root", root.public_key(), root, x509.BasicConstraints(ca=True, path_length=0))
    names = x509.SubjectAlternativeName([x509.IPAddress(address("127.0.0.1"))])
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    own = made("server", key.public_key(), root, names)
    (folder / "server.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private) + own)

    class Authority:
        pass

    found = Authority()
    found.pem, found.own, found.server = pem.decode(), own.decode(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.server.load_cert_chain(folder / "server.pem")
    return found


# -- 1,000 faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(FAULTS))
def test_faults_that_pass_cost_no_byte_twice(seed, authority):
    chance = random.Random(f"pass {seed}")
    data = content(chance.choice((20_000, 90_000, 400_000)), seed)
    tls = chance.choice((None, None, authority.server))
    web = Web({FILE: data}, tls, etag=chance.choice(('"one"', 'W/"one"', None)), dated=chance.random() < 0.8)
    known = webserver.faults(chance)
    names = sorted(known)
    plan = [names[seed % len(names)], *(chance.choice((None, *names)) for _ in range(chance.randrange(3)))]
    web.faults = [None] * chance.randrange(2) + [known[name] if name else None for name in plan]
    with web.serving() as url:
        fetch = Fetch(url + FILE, QUICK, **({"ca": authority.pem} if tls else {}))
        at = asked = 0
        while at < len(data):
            length = chance.choice((100, 10_000, 60_000, 200_000))
            assert fetch.read(at, length) == data[at : at + length]
            asked += len(data[at : at + length])
            at += length + chance.choice((0, 0, 0, 500, 40_000))
        if not web.happened:
            assert fetch.read(0, 100) == data[:100]
            asked += 100
        fetch.source.close()
    assert web.happened[:1] == plan[:1], "the fault did not happen"
    assert fetch.source.fetched - fetch.source.skipped == asked
    assert fetch.source.skipped <= (len(web.asked) + 9) * (32 << 10)


@pytest.mark.parametrize("seed", range(FAULTS // 10))
def test_a_file_that_changes_is_noticed_and_can_be_read_then(seed):
    chance = random.Random(f"change {seed}")
    data = content(400_000, seed)
    web = Web({FILE: data}, ranges=chance.random() < 0.8, etag=chance.choice(('"one"', 'W/"one"')))
    with web.serving() as url:
        fetch = Fetch(url + FILE, CALM)
        first = chance.randrange(1, 30_000)
        assert fetch.read(0, first) == data[:first]
        web.faults = [webserver.changed]
        error = refused(fetch.read, 300_000, 50_000) if web.ranges else refused(fetch.read, 0, 100)
        assert web.happened == ["changed"]
        assert (error.reason, error.retryable) == ("source-changed", True)
        new = web.files[FILE]
        assert fetch.read(0, 100_000) == new[:100_000]


def test_a_date_tells_it_as_well_and_a_size_alone():
    for settings in ({"etag": None}, {"etag": None, "dated": False}):
        web = Web({FILE: content(100_000)}, **settings)
        with web.serving() as url:
            fetch = Fetch(url + FILE)
            fetch.read(0, 10)
            assert fetch.read(50_000, 10)
            assert ("if-range" in web.asked[-1].fields) == (web.dated is True)
            web.files[FILE] += b"x"
            assert refused(fetch.read, 90_000, 10).reason == "source-changed"


def test_a_tag_is_the_same_one_weak_or_not():
    data = content()

    def weak(_web, answer):
        answer.fields["ETag"] = 'W/"one"'

    web = Web({FILE: data})
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        web.faults = [None, weak]
        for at in (0, 100_000, 200_000):
            assert fetch.read(at, 10) == data[at : at + 10]
        assert [one.fields.get("if-range") for one in web.asked] == [None, '"one"', None]


# -- servers without ranges ------------------------------------------------------------------------------------------


def test_without_ranges_it_is_read_forward_from_one_answer():
    data = content(1 << 20)
    web = Web({FILE: data}, ranges=False)
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        for at in (0, 1000, 200_000, 900_000):
            assert fetch.read(at, 777) == data[at : at + 777]
        assert len(web.asked) == 1
        assert fetch.read(100, 10) == data[100:110]  # it is small enough to begin again
        assert len(web.asked) == 2


def test_without_ranges_no_more_is_fetched_again_than_the_limit():
    data = content(AGAIN * 3)
    web = Web({FILE: data}, ranges=False)
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        fetch.read(0, len(data) - 1)
        assert fetch.read(AGAIN - 100, 10) == data[AGAIN - 100 : AGAIN - 90]
        requests = len(web.asked)
        error = refused(fetch.read, 200, 10)
        assert (error.reason, error.retryable) == ("source-no-ranges", False)
        assert len(web.asked) == requests + 1  # it might know them by now
        assert fetch.source.fetched <= len(data) + AGAIN


def test_a_server_that_loses_its_ranges_is_read_forward():
    data = content()
    web = Web({FILE: data}, etag=None, dated=False)
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        assert fetch.read(0, 10) == data[:10]
        web.faults = [webserver.without_ranges]
        assert fetch.read(200_000, 10) == data[200_000:200_010]
    assert web.happened == ["without_ranges"]


def cold(web, answer):
    """The whole file, from a cache that does not have it yet."""
    answer.status, answer.begin, answer.body = 200, 0, next(iter(web.files.values()))
    answer.fields.pop("Content-Range", None)


def test_a_cache_without_ranges_is_asked_for_them_again():
    data = content(AGAIN * 2)

    def cold_and_cut(web, answer):
        cold(web, answer)
        answer.cut = AGAIN + 100_000

    web = Web({FILE: data})
    web.faults = [cold_and_cut, cold]
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        assert fetch.read(0, 1000) == data[:1000]
        web.faults = [None, cold_and_cut, cold]  # when it has ranges, and then none, they come again
        for at in range(1000, len(data), 1 << 20):
            assert fetch.read(at, 1 << 20) == data[at : at + (1 << 20)]
        assert fetch.source.fetched <= len(data) + AGAIN


# -- what no other attempt helps against -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason", "retryable"),
    [
        (404, "source-missing", False),
        (410, "source-missing", False),
        (401, "source-denied", False),
        (403, "source-denied", False),
        (407, "source-proxy", False),
        (400, "source-answer", False),
        (204, "source-answer", False),
        (304, "source-answer", False),
    ],
)
def test_a_refusal_is_told_at_once(status, reason, retryable):
    web = Web({FILE: b"x"})

    def refuses(_web, answer):
        answer.status = status

    web.faults = [refuses]
    with web.serving() as url:
        error = refused(Fetch(url + FILE).read, 0, 1)
    assert (error.reason, error.retryable, len(web.asked)) == (reason, retryable, 1)


@pytest.mark.parametrize("word", ["gzip", "BR", "aws-chunked, gzip", "x-gzip"])
def test_an_encoded_file_is_refused(word):
    web = Web({FILE: content()})
    web.faults = [encoding(word)]
    with web.serving() as url:
        error = refused(Fetch(url + FILE).read, 0, 1)
    assert (error.reason, error.retryable) == ("source-encoded", False)


@pytest.mark.parametrize("word", ["", "identity", "aws-chunked"])
def test_what_a_store_keeps_of_an_upload_is_no_encoding(word):
    data = content()
    web = Web({FILE: data})
    web.faults = [encoding(word)]
    with web.serving() as url:
        assert Fetch(url + FILE).read(0, 100) == data[:100]
    assert web.asked[0].fields["accept-encoding"] == "identity"


def encoding(word):
    def encoded(_web, answer):
        answer.fields["Content-Encoding"] = word

    return encoded


@pytest.mark.parametrize("name", sorted(webserver.faults(random.Random(1))))
def test_a_fault_that_does_not_pass_ends_after_some_attempts(name):
    """None makes it ask without end, or gives bytes that are wrong."""
    data = content(500_000)
    web = Web({FILE: data})
    fault = webserver.faults(random.Random(name))[name]
    web.faults = [fault] * 200
    with web.serving() as url:
        fetch = Fetch(url + FILE, QUICK._replace(attempts=4))
        with contextlib.suppress(SourceError):
            assert fetch.read(0, 400_000) == data[:400_000]
            web.faults = []
        if web.faults:
            error = refused(fetch.read, 0, 400_000)
            assert error.retryable
            assert error.reason in ("source-unreachable", "source-slow", "source-answer", "source-busy")
    assert len(web.happened) <= 60
    assert all(pause <= QUICK.longest for pause in fetch.time.pauses)


def test_pauses_grow_and_a_sign_of_life_is_given_in_them():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        fetch = Fetch(f"http://127.0.0.1:{nobody.getsockname()[1]}/x")
        error = refused(fetch.read, 0, 1)
    assert (error.reason, error.retryable) == ("source-unreachable", True)
    assert sum(fetch.time.pauses) == pytest.approx(0.75 * (1 + 2 + 4 + 8 + 16 + 32 + 60))
    assert max(fetch.time.pauses) <= 20
    assert fetch.alive == len(fetch.time.pauses)


def test_addresses_of_two_families_are_tried_by_turns(monkeypatch):
    """A name may have eight of IPv6, where only IPv4 leads anywhere."""
    web = Web({FILE: b"abc"})
    with web.serving() as url:
        port = int(url.rpartition(":")[2])
        six = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"100::{number}", port, 0, 0)) for number in range(8)]
        four = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr(link, "_resolved", lambda host, port: six + four)
        fetch = Fetch(f"http://updates.example:{port}{FILE}", Limits(address=0.1, reach=0.5, attempts=1))
        assert fetch.read(0, 3) == b"abc"


def test_a_name_that_is_not_found():
    fetch = Fetch("http://no-such-host.invalid/x", Limits(attempts=2))
    assert refused(fetch.read, 0, 1).reason == "source-unreachable"
    assert len(fetch.told) == 1


def test_failures_of_a_process_have_an_end():
    web = Web({FILE: content(1 << 20)})
    web.faults = [webserver.faults(random.Random(3))["busy"]] * 300
    with web.serving() as url:
        fetch = Fetch(url + FILE, Limits(total=20))
        for _ in range(10):
            assert refused(fetch.read, 0, 1).reason == "source-busy"
    assert len(web.asked) == 20 + 7  # then one for each question


@pytest.mark.parametrize(
    ("text", "pause"), [("120", 120), ("Tue, 14 Nov 2023 22:33:20 GMT", 200), ("-1", 0.75), ("soon", 0.75)]
)
def test_the_server_says_when_to_come_again(text, pause):
    web = Web({FILE: content()})

    def busy(_web, answer):
        answer.status, answer.fields = 503, {"Retry-After": text, "Date": "Tue, 14 Nov 2023 22:30:00 GMT"}

    web.faults = [busy]
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        assert len(fetch.read(0, 10)) == 10
    assert sum(fetch.time.pauses) == pytest.approx(pause)


def test_a_long_pause_is_for_who_asked_to_know():
    web = Web({FILE: content()})

    def busy(_web, answer):
        answer.status, answer.fields = 429, {"Retry-After": "900"}

    web.faults = [busy]
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        assert refused(fetch.read, 0, 1).reason == "source-busy"
        error = refused(fetch.read, 0, 1)
        assert (error.reason, error.retryable, len(web.asked)) == ("source-busy", True, 1)
        fetch.time.now += 901
        assert len(fetch.read(0, 10)) == 10


# -- redirects -------------------------------------------------------------------------------------------------------


def redirecting(there, status=302):
    def redirected(_web, answer):
        answer.status, answer.body = status, b"there"
        answer.fields = {"Location": there}

    return redirected


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_and_remembered_until_something_fails(status):
    data = content()
    other = Web({"/there": data})
    web = Web({FILE: b"wrong"})
    with other.serving() as there, web.serving() as url:
        web.faults = [redirecting(f"{there}/there", status)] * 2
        fetch = Fetch(url + FILE, headers={"Authorization": "Bearer secret"})
        assert fetch.read(0, 200_000) == data[:200_000]
        assert (len(web.asked), len(other.asked)) == (1, 1)

        def expired(_web, answer):
            answer.status = 403

        other.faults = [expired]
        assert fetch.read(250_000, 10) == data[250_000:250_010]
        assert len(web.asked) == 2
    assert all("authorization" not in one.fields for one in other.asked)
    assert [one.fields["authorization"] for one in web.asked] == ["Bearer secret"] * 2


@pytest.mark.parametrize(
    "there",
    ["ftp://example.org/x", "file:///etc/passwd", "http://user:word@127.0.0.1/", "http://", "", "http://a b/", "//"],
)
def test_redirects_to_what_is_no_web_server_are_refused(there):
    web = Web({FILE: b"x"})
    web.faults = [redirecting(there)] * 9
    with web.serving() as url:
        assert refused(Fetch(url + FILE).read, 0, 1).reason == "source-redirect"


def test_redirects_have_an_end_and_never_lead_out_of_tls(authority):
    web = Web({FILE: b"x"})
    web.faults = [redirecting(FILE)] * 20
    with web.serving() as url:
        error = refused(Fetch(url + FILE).read, 0, 1)
    assert (error.reason, error.retryable, len(web.asked)) == ("source-redirect", False, 6)
    safe = Web({FILE: b"x"}, tls=authority.server)
    with safe.serving() as url:
        safe.faults = [redirecting(url.replace("https", "http") + FILE)]
        assert refused(Fetch(url + FILE, ca=authority.pem).read, 0, 1).reason == "source-redirect"


# -- proxies, accounts, rate -----------------------------------------------------------------------------------------


def test_an_account_in_the_url_is_for_its_server():
    web = Web({FILE: b"abc"})
    with web.serving() as url:
        web.faults = [redirecting(FILE)]
        assert Fetch(url.replace("//", "//me:p%40ss@") + FILE).read(0, 9) == b"abc"
    for asked in web.asked:
        assert asked.fields["authorization"] == "Basic bWU6cEBzcw=="
        assert "@" not in asked.fields["host"]


def test_through_a_proxy_by_its_absolute_address():
    web = Web({FILE: b"abc"})
    with web.serving() as url:
        fetch = Fetch("http://example.invalid" + FILE, proxy=url.replace("//", "//me:word@"))
        assert fetch.read(0, 9) == b"abc"
    assert web.asked[0].target == "http://example.invalid" + FILE
    assert web.asked[0].fields["host"] == "example.invalid"
    assert web.asked[0].fields["proxy-authorization"] == "Basic bWU6d29yZA=="


class Tunnel:
    """A proxy that leads all connections to one port; what it was told is in `said`."""

    def __init__(self, port, kind):
        self.port, self.kind, self.said = port, kind, []

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.accept, daemon=True).start()
        return self.listener.getsockname()[1]

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def accept(self):
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            getattr(self, self.kind)(link)
            there = socket.create_connection(("127.0.0.1", self.port))
            for one, other in ((link, there), (there, link)):
                threading.Thread(target=self.copy, args=(one, other), daemon=True).start()

    def copy(self, one, other):
        while data := one.recv(65536):
            other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def connect(self, link):
        self.said.append(link.recv(4096))
        link.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")

    def socks(self, link):
        self.said.append(link.recv(100))
        link.sendall(b"\x05\x02")
        self.said.append(link.recv(100))
        link.sendall(b"\x01\x00")
        self.said.append(link.recv(100))
        link.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")


def test_through_a_tunnel(authority):
    data = content()
    web = Web({FILE: data}, tls=authority.server)
    with web.serving() as url:
        port = int(url.rpartition(":")[2])
        tunnel = Tunnel(port, "connect")
        with tunnel as way:
            fetch = Fetch(f"https://127.0.0.1:{port}{FILE}", ca=authority.pem, proxy=f"http://me:word@127.0.0.1:{way}")
            assert fetch.read(0, len(data)) == data
        assert tunnel.said[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())
        assert b"\r\nProxy-Authorization: Basic bWU6d29yZA==\r\n" in tunnel.said[0]
        assert "proxy-authorization" not in web.asked[0].fields


def test_through_socks():
    data = content()
    web = Web({FILE: data})
    with web.serving() as url:
        port = int(url.rpartition(":")[2])
        tunnel = Tunnel(port, "socks")
        with tunnel as way:
            fetch = Fetch(f"http://example.invalid:{port}{FILE}", proxy=f"socks5h://me:word@127.0.0.1:{way}")
            assert fetch.read(0, len(data)) == data
    assert tunnel.said == [
        b"\x05\x01\x02",
        b"\x01\x02me\x04word",
        b"\x05\x01\x00\x03\x0fexample.invalid" + port.to_bytes(2, "big"),
    ]


def test_a_proxy_that_says_no():
    web = Web({})
    with web.serving() as url:
        fetch = Fetch("https://example.invalid/x", proxy=url)
        error = refused(fetch.read, 0, 1)
    assert (error.reason, error.retryable) == ("source-proxy", False)
    assert len(web.asked) == 1


def test_no_more_is_taken_than_the_rate_allows():
    data = content(1 << 20)
    web = Web({FILE: data})
    with web.serving() as url:
        fetch = Fetch(url + FILE, rate=100_000)
        begin = fetch.time.now
        assert fetch.read(0, len(data)) == data
    assert fetch.time.now - begin == pytest.approx(len(data) / 100_000)
    assert max(fetch.time.pauses) <= 0.3
    assert fetch.alive == 0  # less than 20 s


def test_what_is_under_way_when_a_connection_drops_is_little():
    """The server sends at most a twentieth more than the file has, over a whole file with a drop in each megabyte."""
    data = content(24 << 20)
    web = Web({FILE: data}, buffer=32 << 10)

    def drops(_web, answer):
        answer.cut, answer.reset = min(1 << 20, len(answer.body)), True

    web.faults = [drops] * 20
    with web.serving() as url:
        fetch = Fetch(url + FILE)
        for at in range(0, len(data), 1 << 20):
            assert fetch.read(at, 1 << 20) == data[at : at + (1 << 20)]
        fetch.source.close()
    assert len(web.happened) == 20
    assert len(fetch.told) >= 15
    assert fetch.source.fetched == len(data)
    assert web.sent <= len(data) * 1.05


# -- small files -----------------------------------------------------------------------------------------------------


def test_files_below_a_url():
    web = Web(
        {
            "/c/timestamp.json": b"{}",
            "/c/targets/a.json": content(200_000),
            "/c/empty": b"",
            "/c/1.0~rc%5E2.json": b"[]",
        }
    )
    with web.serving() as url:
        for base in ("/c", "/c/"):
            fetch = Fetch(url + base)
            assert fetch.folder.get("timestamp.json", 10) == b"{}"
            assert fetch.folder.get("targets/a.json", 200_000) == content(200_000)
            assert fetch.folder.get("empty", 0) == b""
            assert fetch.folder.get("1.0~rc^2.json", 9) == b"[]"
            assert refused(fetch.folder.get, "9.root.json", 10).reason == "source-missing"
            assert refused(fetch.folder.get, "timestamp.json", 1).reason == "source-too-big"
            assert fetch.folder.get("timestamp.json", 2) == b"{}"
        web.ranges = False
        assert refused(fetch.folder.get, "targets/a.json", 199_999).reason == "source-too-big"
        for name in ("", "/x", "../x", "a/../b", "a//b", "x?y", "a%2e", ".x", "a/", "a b", "x" * 300):
            assert refused(fetch.folder.get, name, 10).reason == "source-name"


# -- pieces ----------------------------------------------------------------------------------------------------------


def test_dates():
    for seconds in (0, 1, 951_782_400, 951_868_799, 1_700_000_000, 4_102_444_800):
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        assert date(moment.strftime("%a, %d %b %Y %H:%M:%S GMT")) == seconds
    for text in (None, "", "soon", "Tue, 14 Foo 2023 22:33:20 GMT", "Tuesday, 14-Nov-23 22:33:20 GMT"):
        assert date(text) is None


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 99 x\r\n\r\n",
        b"HTTP/1.1 200 x\nA: b\r\n\r\n",
        b"HTTP/1.1 200 x\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 x\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 x\r\nA: b\0\r\n\r\n",
        b"HTTP/1.1 200 x\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"\r\n\r\n",
    ],
)
def test_heads_that_are_none(head):
    assert refused(parse_head, head).reason == "source-answer"


def test_a_head():
    head = parse_head(b'HTTP/1.1 206 Partial\xff Content\r\nA: b\r\nETAG:\t "x" \r\na: c\r\nEmpty:\r\n\r\n')
    assert (head.status, head.persistent) == (206, True)
    assert head.fields == {"a": "b, c", "etag": '"x"', "empty": ""}
    assert not parse_head(b"HTTP/1.0 200\r\n\r\n").persistent
    assert not parse_head(b"HTTP/1.1 200\r\nConnection: x, Close\r\n\r\n").persistent


@pytest.mark.parametrize(
    "told",
    [
        "",
        "[]",
        "{}",
        '{"url": 5}',
        '{"url": "ftp://example.org/"}',
        '{"url": "http:///x"}',
        '{"url": "http://example.org:99999/"}',
        '{"url": "http://a/", "else": 1}',
        '{"url": "http://a/", "rate": 1}',
        '{"url": "http://a/", "rate": true}',
        '{"url": "http://a/", "ca": 1}',
        '{"url": "http://a/", "headers": {"A": "b\\r\\nc"}}',
        '{"url": "http://a/", "headers": {"Range": "bytes=0-"}}',
        '{"url": "http://a/", "headers": ["A"]}',
        '{"url": "http://a/", "proxy": "ftp://a/"}',
        '{"url": "http://a/", "proxy": "http://a/path"}',
        '{"url": "http://a/", "proxy": 5}',
        "[" * 100_000,
    ],
)
def test_what_is_to_be_fetched_is_told_rightly_or_not_at_all(told):
    assert refused(parse, told).reason == "source-order"


def test_urls():
    assert check_url("HTTP://EXAMPLE.org/a?b#c").geturl() == "http://EXAMPLE.org/a?b"
    assert check_url("http://[fe80::1]:8080/").hostname == "fe80::1"
    assert check_url("https://a_b.example.org./").hostname == "a_b.example.org."
    assert check_url("../x", "https://a/b/c/d").geturl() == "https://a/b/x"
    odd = (f"https://{host}/" for host in (".a", "a..b", f"{'a' * 64}.b", "[::1", "a:b:c"))  # no name for TLS
    for text in ("http://a\n/", "http://ä/", "http://a:0/", "http://" + "a" * 5000, "x", *odd):
        with pytest.raises(ValueError):
            check_url(text)


# -- between processes -----------------------------------------------------------------------------------------------


def test_the_program_answers_ranges():
    data = content(3 << 20)
    web = Web({FILE: data})
    with web.serving() as url, Running("ranges", json.dumps({"url": url + FILE})) as running:
        asking = Ranges(running.descriptor, running.descriptor)
        assert asking.read(0, 2 << 20) == data[: 2 << 20]
        assert asking.read(len(data) - 5, 10) == data[-5:]
        web.files = {}
        with pytest.raises(MixosError) as caught:
            asking.read(100, 10)
        assert caught.value.reason == "source-missing"
        assert running.end() == 0


def test_the_program_answers_for_files():
    web = Web({"/c/timestamp.json": b"{}"})
    with web.serving() as url, Running("files", json.dumps({"url": url + "/c"})) as running:
        asking = Files(running.descriptor, running.descriptor)
        assert asking.get("timestamp.json", 100) == b"{}"
        with pytest.raises(MixosError) as caught:
            asking.get("2.root.json", 100)
        assert (caught.value.reason, caught.value.retryable) == ("source-missing", False)
        assert asking.get("timestamp.json", 100) == b"{}"
        assert running.end() == 0


@pytest.mark.parametrize("told", ["", "{}", '{"url": "ftp://a/"}'])
def test_the_program_ends_when_it_is_told_nothing_right(told):
    with Running("ranges", told) as running:
        assert running.end() == SourceError.exit_code
        assert [one["error"]["reason"] for one in running.said()] == ["source-order"]


def test_the_program_says_what_fails():
    web = Web({FILE: b"abc"})
    web.faults = [webserver.faults(random.Random(1))["garbage"]]
    with web.serving() as url, Running("ranges", json.dumps({"url": url + FILE})) as running:
        assert Ranges(running.descriptor, running.descriptor).read(0, 9) == b"abc"
        ready, failed = running.said()
        assert ready == {"host": "127.0.0.1"}
        assert 0.4 < failed["again"] < 1.1
        running.ours.sendall(ranges.QUESTION.pack(0, 0))
        assert running.end() == BundleError.exit_code
        assert running.said()[-1]["error"]["reason"] == "source-protocol"


@pytest.mark.parametrize("argv", [[], ["ranges"], ["ranges", "x"], ["other", "3"]])
def test_the_program_is_called_rightly_or_not_at_all(argv, capsys):
    assert fetch.main(argv) == UsageError.exit_code
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "usage"


def test_an_answer_that_takes_longer_is_waited_for(monkeypatch):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ranges.wait(theirs.fileno())
        ranges.wait(theirs.fileno())
        theirs.sendall(ranges.ANSWER.pack(ranges.DATA, 3) + b"abc")
        assert Ranges(ours.fileno(), ours.fileno()).read(0, 3) == b"abc"
        monkeypatch.setattr(ranges, "LONGEST", 0.0)
        ranges.wait(theirs.fileno())
        with pytest.raises(MixosError) as caught:
            Ranges(ours.fileno(), ours.fileno()).read(0, 3)
        assert caught.value.reason == "source-protocol"


@pytest.mark.parametrize(
    "question",
    [ranges.NAME.pack(0, 5), ranges.NAME.pack(300, 5), ranges.NAME.pack(1, 1 << 30), b"\0\2\0\0\0\5\xff\xff"],
)
def test_questions_for_files_that_are_none(question):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(question)
        with pytest.raises(MixosError) as caught:
            ranges.answer_files(theirs.fileno(), theirs.fileno(), lambda name, most: b"")
        assert caught.value.reason == "source-protocol"
