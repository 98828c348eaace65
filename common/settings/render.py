"""Settings → files below /etc. The one writer: used when the image is composed and when a preseed is applied."""

from __future__ import annotations

from dataclasses import dataclass

from common.accounts import ACCOUNTS
from common.settings import sshkey
from common.settings.model import Settings
from common.settings.zones import tzif, zones

_NOTE = "# Written from the settings of this device (mixos.toml, mixos-preseed.toml); changes here are lost.\n"
_UPDATE = (
    "# From [settings.update] of mixos.toml or [update] of mixos-preseed.toml, which write it anew when they change.\n"
)


@dataclass(frozen=True)
class File:
    """The content and mode of a rendered file; the owner is root."""

    data: bytes
    mode: int = 0o644


def render(settings: Settings) -> dict[str, File]:
    """Every file that depends on settings: path relative to the root → File. Pure; `settings` are valid already."""
    host = settings.hostname
    short = host.partition(".")[0]
    names = host if short == host else f"{host} {short}"
    texts = {
        "etc/hostname": f"{host}\n",
        "etc/hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {names}\n",
        "etc/timezone": f"{settings.timezone}\n",
        "etc/ntp.conf": _NOTE + "".join(f"server {name}\n" for name in settings.servers),
        "etc/mixos/network.conf": _NOTE + _network(settings),
        "etc/ssh/sshd_config.d/10-accounts.conf": _NOTE + _accounts(settings),
    }
    if written := settings.update.toml():  # with no word about it the file is the device's own
        texts["etc/mixos/update.toml"] = _UPDATE + written
    for account in ACCOUNTS:
        lines = (
            sshkey.line(key.key, account.terminal, key.sources, key.expires, key.options) + "\n"
            for key in settings.keys
            if key.account == account.name
        )
        texts[f"etc/ssh/authorized_keys/{account.name}"] = _NOTE + "".join(lines)
    files = {path: File(text.encode()) for path, text in texts.items()}
    rule = "UTC0" if settings.timezone == "UTC" else zones()[settings.timezone]
    files["etc/localtime"] = File(tzif(rule))
    return files


def _network(settings: Settings) -> str:
    """Shell assignments for the init scripts. The parser lets only letters, digits and `.:/_- ` into these values."""
    network = settings.network
    return (
        f"MODE={network.mode}\nINTERFACE={network.interface}\nADDRESS={network.address}\n"
        f'GATEWAY={network.gateway}\nDNS="{" ".join(network.dns)}"\n'
    )


def _accounts(settings: Settings) -> str:
    """Who may log in at all: the administrator, and whoever has a key. The order is that of the table of accounts."""
    open_to = {"admin", *(key.account for key in settings.keys)} - {"root"} | (
        {"root"} if settings.root_login else set()
    )
    allowed = " ".join(account.name for account in ACCOUNTS if account.name in open_to)
    return f"PermitRootLogin {'prohibit-password' if settings.root_login else 'no'}\nAllowUsers {allowed}\n"
