"""`mixctl proxy`: the proxy that services and the daemon use."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from common.units import duration
from daemon.client.cli.change import change_options, changed, wish
from daemon.client.cli.common import ask, json_option, show


@click.group()
def proxy() -> None:
    """The proxy for services and the daemon itself.

    \b
    Example:
      mixctl proxy set http://proxy.example.org:3128 --no-proxy 192.0.2.0/24
      mixctl proxy test https://example.org/
    """


@proxy.command("show")
@json_option
def show_(as_json: bool) -> None:
    """Show the setting; a password is never shown.

    \b
    Example:
      mixctl proxy show
    """
    show(ask("proxy.show"), as_json, _shown)


def _shown(result: Mapping[str, Any]) -> str:
    kinds = [f"{kind:9} {result[kind]}" for kind in ("http", "https", "socks") if result[kind]]
    if not kinds:
        return "no proxy"
    user = [f"user      {result['user']}"] if result["user"] else []
    return "\n".join([*kinds, *user, f"not for   {' '.join(result['no-proxy'])}"])


@proxy.command("set")
@click.argument("url", required=False)
@click.option("--http", metavar="URL", help="For http:// only; empty: none.")
@click.option("--https", metavar="URL", help="For https:// only; empty: none.")
@click.option("--socks", metavar="URL", help="For everything else: socks5h://host:port; empty: none.")
@click.option("--no-proxy", multiple=True, help="An address, network, host or .suffix to reach directly; empty: none.")
@click.option("--user", help="The user at the proxy; the password is asked for, or read from standard input.")
@change_options
def set_(
    url: str | None,
    no_proxy: tuple[str, ...],
    user: str | None,
    as_json: bool,
    dry_run: bool,
    confirm: int | None,
    force: bool,
    **kinds: str | None,
) -> None:
    """Set the proxy; URL stands for both --http and --https. What is not given stays.

    \b
    Example:
      mixctl proxy set http://proxy.example.org:3128 --user device7 <password-file
    """
    params: dict[str, object] = {"http": url, "https": url} if url else {}
    params |= {kind: value for kind, value in kinds.items() if value is not None}
    if no_proxy:
        params["no-proxy"] = [entry for entry in no_proxy if entry]
    if user:
        params |= {"user": user, "password": _password()}
    if not params:
        raise click.UsageError("say what to set")
    params |= wish({"dry_run": dry_run, "confirm": confirm, "force": force})
    show(ask("proxy.set", params), as_json, _changed)


def _changed(answer: Mapping[str, Any]) -> str:
    return changed(answer) if not answer["applied"] or answer["confirm"] else _shown(answer)


def _password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, err=True))
    return sys.stdin.readline().rstrip("\n")


@proxy.command()
@change_options
def apply(as_json: bool, **values: object) -> None:
    """Put proxy.toml in force, after editing it.

    \b
    Example:
      mixctl proxy apply
    """
    show(ask("proxy.apply", wish(values)), as_json, _changed)


@proxy.command()
@change_options
def clear(as_json: bool, **values: object) -> None:
    """Use no proxy, and forget its password.

    \b
    Example:
      mixctl proxy clear
    """
    show(ask("proxy.clear", wish(values)), as_json, _changed)


@proxy.command()
@click.argument("url")
@json_option
def test(url: str, as_json: bool) -> None:
    """Fetch URL the way services would, and show through which proxy and with what status.

    \b
    Example:
      mixctl proxy test https://example.org/
    """
    show(ask("proxy.test", {"url": url}, seconds=40.0), as_json, _tested)


def _tested(result: Mapping[str, Any]) -> str:
    return f"{result['status']} in {duration(result['seconds'])}, " + (
        f"through {result['proxy']}" if result["proxy"] else "directly"
    )
