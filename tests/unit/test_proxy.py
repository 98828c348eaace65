"""The proxy setting: parsing, exceptions, environment, secrets, and real requests through proxies on the loopback."""

from __future__ import annotations

import asyncio
import base64
import grp
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from buildsys.run import run
from common.errors import ConfigError, MixosError
from daemon.core.change.applier import View
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.parts.proxy import verbs as cli
from daemon.parts.proxy.part import (
    Credentials,
    Proxy,
    ProxyFile,
    Settings,
    parse_exception,
    parse_proxy,
    proxies_for,
    read,
)
from daemon.parts.proxy.trial import fetch
from daemon.parts.service.prepare import environment_file
from tests.hostpackages import ROOT

ME = Caller(Role.ADMIN, 0, 0, 1, "root", "local")
SECRET = "p@ss w:rd/%"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    folders = [tmp_path / name for name in ("run", "state", "etc", "lib", "log")]
    for folder in folders:
        folder.mkdir()
    return Context(*folders)


def started(context: Context, *more: str) -> Proxy:
    part = Proxy(context, *more)
    asyncio.run(part.start())
    return part


def call(part: Proxy, name: str, **params: object) -> Any:
    method = {one.name: one for one in part.methods()}[f"proxy.{name}"]
    keys = {key.replace("_", "-"): value for key, value in params.items()}
    return asyncio.run(method.handler(ME, method.params.model_validate(keys)))  # type: ignore[arg-type]


def test_files_edited_by_hand_are_applied(context: Context):
    part = Proxy(context)
    asyncio.run(part.start())
    (context.etc / "proxy.toml").write_text('http = "http://192.0.2.1:3128"\n')
    assert call(part, "apply")["http"] == "http://192.0.2.1:3128"
    assert "HTTP_PROXY=http://192.0.2.1:3128\n" in (context.run / "proxy.env").read_text()
    (context.etc / "proxy.toml").write_text('http = "nonsense"\n')
    with pytest.raises(ConfigError):
        call(part, "apply")
    assert call(part, "show")["http"] == "http://192.0.2.1:3128"


# -- values ----------------------------------------------------------------------------------------------------------


def test_proxies_are_normalised():
    assert parse_proxy("http://Proxy.Example:3128/", ("http",)) == "http://proxy.example:3128"
    assert parse_proxy("http://[2001:db8::1]:3128", ("http",)) == "http://[2001:db8::1]:3128"


@pytest.mark.parametrize(
    "text",
    ["proxy:3128", "ftp://p", "http://", "http://p:99999", "http://p/path", "http://p?x", "http://a b", "http://p\n:1",
     "http://u:p@proxy", "http://[::1", "http://p:x", "http://ü", "http://p#f", "http://" + "a" * 400],
)  # fmt: skip
def test_what_is_no_proxy(text):
    with pytest.raises(ValueError):
        parse_proxy(text, ("http", "https"))


def test_a_password_in_the_url_is_refused_without_repeating_it():
    with pytest.raises(ValueError) as caught:
        parse_proxy(f"http://me:{'geheim'}@proxy", ("http",))
    assert "geheim" not in str(caught.value)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_an_entry_or_refused(text):
    for function in (parse_exception, lambda word: parse_proxy(word, ("http",))):
        try:
            found = function(text)
        except ValueError:
            continue
        assert function(found) == found
        assert not set(found) & set(" ,\n\"'")


@pytest.mark.parametrize(
    ("host", "port", "direct"),
    [
        ("192.0.2.77", 80, True),
        ("192.0.3.1", 80, False),
        ("2001:db8::5", 443, True),
        ("2001:db9::5", 443, False),
        ("example.org", 80, True),
        ("WWW.Example.ORG.", 80, True),
        ("notexample.org", 80, False),
        ("build.lan", 8080, True),
        ("build.lan", 80, False),
        ("localhost", 80, True),
        ("127.9.9.9", 80, True),
        ("::1", 80, True),
        ("198.51.100.9", 80, True),
        ("192.0.2.example.net", 80, False),
    ],
)
def test_exceptions(host, port, direct):
    file = ProxyFile.model_validate(
        {"no-proxy": ("192.0.2.0/24", "2001:db8::/32", ".example.org", "build.lan:8080", "198.51.100.9")}
    )
    assert Settings(file).direct(host, port) == direct


# case: wanted [v6]:port
@pytest.mark.parametrize(
    ("entry", "written", "near", "far"),
    [
        ("[2001:DB8::9]:8080", "[2001:db8::9]:8080", ("2001:db8::9", 8080), ("2001:db8::9", 80)),
        ("[2001:db8::9]", "2001:db8::9", ("2001:db8::9", 80), ("2001:db8::8", 80)),
        ("192.0.2.9:8080", "192.0.2.9:8080", ("192.0.2.9", 8080), ("192.0.2.9", 80)),
        ("::ffff:192.0.2.9", "192.0.2.9", ("192.0.2.9", 80), ("192.0.2.8", 80)),
    ],
)
def test_an_address_with_a_port(entry, written, near, far):
    found = Settings(ProxyFile.model_validate({"no-proxy": (entry,)}))
    assert found.file.no_proxy == (written,)
    assert found.direct(*near)
    assert not found.direct(*far)


def test_a_star_means_no_proxy_at_all():
    proxies = ProxyFile.model_validate({"http": "http://p:1", "no-proxy": ("*",)})
    assert Settings(proxies).for_url("http://example.net/") is None


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_url_gets_an_answer_or_a_value_error(url):
    try:
        found = Settings(ProxyFile.model_validate({"http": "http://p:1"})).for_url(url)
    except ValueError:
        return
    assert found in (None, "http://p:1")


# -- the part --------------------------------------------------------------------------------------------------------


def test_setting_writes_file_environment_and_an_event(context):
    part = Proxy(context)

    async def work() -> Any:
        events = asyncio.ensure_future(anext(context.events.listen("proxy.")))
        await part.start()
        await asyncio.sleep(0)
        method = {one.name: one for one in part.methods()}["proxy.set"]
        keys = {"http": "http://p.example:3128", "https": "http://p.example:3128", "no-proxy": ["192.0.2.0/24"]}
        await method.handler(ME, method.params.model_validate({**keys, "user": "me", "password": SECRET}))  # type: ignore[misc]
        return await events

    event = asyncio.run(work())
    assert SECRET not in json.dumps(event.data)
    environment = environment_file(context.run / "proxy.env")
    assert environment["HTTP_PROXY"] == environment["https_proxy"] == "http://me:p%40ss%20w%3Ard%2F%25@p.example:3128"
    assert "192.0.2.0/24" in environment["NO_PROXY"].split(",")
    assert (context.run / "proxy.env").stat().st_mode & 0o077 == 0
    assert (context.etc / "proxy.secret.toml").stat().st_mode & 0o777 == 0o600
    assert SECRET not in (context.etc / "proxy.toml").read_text()
    shown = json.dumps(call(part, "show"))
    assert SECRET not in shown
    assert "p%40ss" not in shown
    assert proxies_for("http://example.net/x", context.etc) == {"http": environment["HTTP_PROXY"]}
    assert proxies_for("http://192.0.2.9/x", context.etc) == {}


def test_what_is_not_given_stays_and_clear_forgets_all(context):
    part = started(context)
    call(part, "set", http="http://a:1", user="u", password="p")
    (context.etc / "proxy.toml").write_text("# mine\n" + (context.etc / "proxy.toml").read_text())
    shown = call(part, "set", socks="socks5h://b:2")
    assert (shown["http"], shown["socks"], shown["user"]) == ("http://***@a:1", "socks5h://***@b:2", "u")
    assert "# mine" in (context.etc / "proxy.toml").read_text()
    assert call(part, "set", http="")["http"] is None
    assert call(part, "clear")["socks"] is None
    assert not list(context.etc.iterdir())
    assert (context.run / "proxy.env").read_bytes() == b""


def test_a_login_shell_has_the_setting_and_only_its_group_may_read_it(context, tmp_path):
    group = grp.getgrgid(65534)
    part = started(context, group.gr_name)
    call(part, "set", http="http://p.example:3128", no_proxy=["192.0.2.0/24"], user="me", password=SECRET)
    path = context.run / "proxy.env"
    assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o640, 65534)
    script = ROOT / "rootfs/skeleton/etc/profile.d/proxy.sh"
    (tmp_path / "proxy.sh").write_text(script.read_text().replace("/run/mixos", str(context.run)))
    told = run(["/usr/bin/busybox", "sh", "-c", f". {tmp_path}/proxy.sh; exec env"]).text.splitlines()
    expected = environment_file(path)
    assert len(expected) == 4
    assert {line for line in told if line.partition("=")[0] in expected} == {f"{k}={v}" for k, v in expected.items()}


@pytest.mark.parametrize(
    "text", ["192.0.2.1/24", "192.0.2.0/33", "a b", "host:123456", "", "[::1]:", "[::1]80", "[::1", "::1]", "[a]"]
)
def test_what_is_no_exception(text):
    with pytest.raises(ValueError):
        parse_exception(text)


def test_mistakes(context):
    part = started(context)
    with pytest.raises(MixosError) as caught:
        call(part, "set", user="alone")
    assert caught.value.reason == "proxy-credentials"
    with pytest.raises(ValidationError):
        call(part, "set", user="a:b", password="p")
    with pytest.raises(ValidationError) as invalid:
        call(part, "set", http="http://u:geheim@p:1")
    assert "geheim" not in str(invalid.value.errors(include_input=False, include_context=False))
    (context.etc / "proxy.toml").write_text("http = 'p:1'\n")
    with pytest.raises(ConfigError) as config:
        read(View(context.changes.places))
    assert config.value.reason == "config-value"
    assert "proxy.toml:1:" in config.value.message


def test_a_secret_that_others_can_read_is_refused_and_its_content_never_told(context):
    secret = context.etc / "proxy.secret.toml"
    secret.write_text("user = 'u'\npassword = 'geheim'\n")
    secret.chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        read(View(context.changes.places))
    assert caught.value.reason == "proxy-secret-open"
    secret.write_text("user = 'u'\npassword = ['geheim']\n")
    secret.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        read(View(context.changes.places))
    assert "geheim" not in caught.value.message


def test_a_broken_file_keeps_the_environment_that_services_have(context):
    part = started(context)
    call(part, "set", http="http://a:1")
    before = (context.run / "proxy.env").read_bytes()
    (context.etc / "proxy.toml").write_text("http = ")
    again = started(replace(context))
    assert again.problem is not None
    assert again.problem.reason == "config-syntax"
    assert (context.run / "proxy.env").read_bytes() == before
    (context.state / "changes/proxy.good").unlink()  # nothing is known to be good
    with pytest.raises(ConfigError):
        started(replace(context))
    assert (context.run / "proxy.env").read_bytes() == before


def test_a_password_that_is_tried_is_written_when_it_is_confirmed(context):
    part = started(context)
    answer = call(part, "set", http="http://a:1", user="u", password="geheim", confirm=600)
    assert answer["confirm"] == 600
    assert environment_file(context.run / "proxy.env")["HTTP_PROXY"] == "http://u:geheim@a:1"
    assert not (context.etc / "proxy.secret.toml").exists()
    changes = context.changes
    asyncio.run(changes.confirm(ME, changes.find("proxy")))
    assert (context.etc / "proxy.secret.toml").stat().st_mode & 0o777 == 0o600
    assert not list((context.state / "changes").glob("*.json"))
    assert "geheim" not in (context.state / "changes/proxy.good").read_text()


# -- real requests ---------------------------------------------------------------------------------------------------

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def through(server: Serve, url: str, kind: str, credentials: Credentials | None = None) -> dict[str, Any]:
    """Fetch a URL with a proxy of ours at the far end."""

    async def work() -> dict[str, Any]:
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            scheme = "socks5h" if kind == "socks" else "http"
            keys = {kind: f"{scheme}://127.0.0.1:{port}"}
            return await fetch(url, Settings(ProxyFile.model_validate(keys), credentials))

    return asyncio.run(work())


def answering(status: bytes, seen: list[bytes]) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(status + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    return serve


def test_http_goes_by_absolute_uri_with_credentials():
    seen: list[bytes] = []
    pair = Credentials(user="me", password=SECRET)
    found = through(answering(b"HTTP/1.1 204 No Content", seen), "http://example.test/a?b", "http", pair)
    assert found["status"] == 204
    assert found["proxy"].startswith("http://***@127.0.0.1:")
    assert seen[0].startswith(b"GET http://example.test/a?b HTTP/1.1\r\nHost: example.test\r\n")
    assert b"Basic " + base64.b64encode(f"me:{SECRET}".encode()) in seen[0]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (b"HTTP/1.1 407 Authentication", "proxy-denied"),
        (b"HTTP/1.1 403 No", "proxy-refused"),
        (b"SSH-2.0", "proxy-answer"),
        (b"HTTP/1.1 200" + b"\r\nX: y" * 300, "proxy-answer"),
        (b"HTTP/1.1 200 OK", "proxy-unreachable"),  # and then it closes
        (b"x" * 40000, "proxy-unreachable"),
    ],
)
def test_what_a_tunnel_may_meet(status, reason):
    seen: list[bytes] = []
    with pytest.raises(MixosError) as caught:
        through(answering(status, seen), "https://example.test/", "https")
    assert caught.value.reason == reason
    assert seen[0].startswith(b"CONNECT example.test:443 HTTP/1.1\r\n")
    assert b"Connection" not in seen[0]


def test_nobody_listens():
    async def work() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        await fetch("http://example.test/", Settings(ProxyFile.model_validate({"http": f"http://127.0.0.1:{port}"})))

    with pytest.raises(MixosError) as caught:
        asyncio.run(work())
    assert caught.value.reason == "proxy-unreachable"


def socks(seen: list[bytes], code: int = 0, login: int = 0) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = await reader.readexactly(3)
        writer.write(bytes([5, greeting[2]]))
        if greeting[2] == 2:
            seen.append(await reader.readexactly((await reader.readexactly(2))[1]))
            seen.append(await reader.readexactly((await reader.readexactly(1))[0]))
            writer.write(bytes([1, login]))
        head = await reader.readexactly(5)
        seen.append(await reader.readexactly(head[4] + 2))
        writer.write(bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        writer.close()

    async def serve_or_stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()  # the client gave up: what a refusal is to lead to

    return serve_or_stop


def test_socks_resolves_at_the_proxy_and_logs_in():
    seen: list[bytes] = []
    found = through(socks(seen), "http://example.test:81/", "socks", Credentials(user="me", password=SECRET))
    assert found["status"] == 200
    assert seen[:2] == [b"me", SECRET.encode()]
    assert seen[2] == b"example.test" + (81).to_bytes(2, "big")
    assert seen[3].startswith(b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize(("code", "login", "reason"), [(5, 0, "proxy-refused"), (0, 1, "proxy-denied")])
def test_socks_refusals(code, login, reason):
    with pytest.raises(MixosError) as caught:
        through(socks([], code, login), "http://example.test/", "socks", Credentials(user="u", password="p"))
    assert caught.value.reason == reason


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_reads_the_password_from_standard_input(context, monkeypatch):
    part = started(context)
    monkeypatch.setattr(
        cli, "ask", lambda method, params=None, **_: call(part, method.partition(".")[2], **(params or {}))
    )
    runner = CliRunner()
    result = runner.invoke(cli.proxy, ["set", "http://p:1", "--no-proxy", ".lan", "--user", "me"], input=f"{SECRET}\n")
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert read(View(context.changes.places)).credentials == Credentials(user="me", password=SECRET)
    shown = json.loads(runner.invoke(cli.proxy, ["show", "--json"]).output)
    assert (shown["https"], shown["no-proxy"][-1]) == ("http://***@p:1", ".lan")
    # case: wanted emptying no-proxy
    assert runner.invoke(cli.proxy, ["set", "--no-proxy", ""]).exit_code == 0
    assert read(View(context.changes.places)).file.no_proxy == ()
    assert runner.invoke(cli.proxy, ["clear"]).exit_code == 0
    assert runner.invoke(cli.proxy, ["set"]).exit_code == 2
    assert read(View(context.changes.places)) == Settings()
