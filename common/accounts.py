"""The accounts that people and programs log in to. An account is a role, and the kernel tells it by the user id."""

from __future__ import annotations

from typing import NamedTuple


class Account(NamedTuple):
    """A row of /etc/passwd that has a role.

    role: a value of `daemon.core.method.Role`; has_shell: whether /bin/sh may be had; terminal: whether sshd gives one.
    """

    name: str
    uid: int
    role: str
    has_shell: bool
    terminal: bool

    @property
    def home(self) -> str:
        """The home folder, as in /etc/passwd."""
        return "/root" if self.uid == 0 else f"/home/{self.name}"


ACCOUNTS = (
    Account("admin", 1000, "admin", has_shell=True, terminal=True),
    Account("operator", 1001, "operator", has_shell=False, terminal=True),
    Account("viewer", 1002, "viewer", has_shell=False, terminal=True),
    Account("agent", 1003, "agent", has_shell=False, terminal=False),
    Account("root", 0, "admin", has_shell=True, terminal=True),
)
NAMES = tuple(account.name for account in ACCOUNTS)


def of_uid(uid: int) -> Account | None:
    """The account of a user id; None for every other user, who has no business here."""
    return next((account for account in ACCOUNTS if account.uid == uid), None)
