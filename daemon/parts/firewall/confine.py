"""Keeps the rules of units in force while their cgroups come and go.

The supervisor calls `attach` after it has made a unit's cgroup and before it starts anything in it: a unit that has
rules never runs without them. Events of services bring the table up to date afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from common.errors import MixosError
from daemon.core.part import Context
from daemon.linux.log import log
from daemon.parts.firewall import units
from daemon.parts.firewall.kernel import Kernel
from daemon.parts.firewall.policy import Policy
from daemon.parts.firewall.units import Place

if TYPE_CHECKING:
    from daemon.parts.firewall.answers import Confined


class Confiner:
    """Units' rules in the kernel. `policy` gives the policy in force, None before there is one."""

    def __init__(self, context: Context, kernel: Kernel, place: Place, policy: Callable[[], Policy | None]) -> None:
        self.context = context
        self.kernel = kernel
        self.place = place
        self.policy = policy
        self.supported: bool | None = None  # whether this kernel matches sockets by cgroup; None: not asked yet
        self._loaded: str | None = None
        self._lock = asyncio.Lock()

    async def attach(self, unit: str) -> None:
        """Put a unit's rules into force, its cgroup being there. Raises MixosError when it has rules and they cannot
        be: `firewall-no-cgroup-match` (kernel), `firewall-no-cgroup`, `firewall-invalid`."""
        policy = self.policy()
        if policy is None or unit not in policy.config.units:
            return
        if not await self.able():
            raise MixosError(
                f"units.{unit}: this kernel cannot match sockets by cgroup", reason="firewall-no-cgroup-match"
            )
        if unit not in units.present(policy, self.place):
            raise MixosError(f"units.{unit}: its cgroup is not there", reason="firewall-no-cgroup")
        await self.refresh(anew=True)

    async def refresh(self, anew: bool = False) -> None:
        """Rules for exactly the units that have a cgroup now. anew: a cgroup of the same name may be another one."""
        policy = self.policy()
        async with self._lock:
            names = units.present(policy, self.place) if policy else []
            if names and not await self.able():
                log("err", f"firewall: this kernel cannot confine units by cgroup: {' '.join(names)}")
                return
            text = units.text(policy, names, self.place) if policy else ""
            if policy and (anew or text != self._loaded) and (names or self._loaded):
                await self.kernel.load_text(text)
                self._loaded = text

    async def able(self) -> bool:
        """Whether nft and kernel can match sockets by cgroup, by trying; False while there is no cgroup to try with."""
        if self.supported is None and (units.CGROUPS / self.place.folder).is_dir():
            self.supported = await self.kernel.accepts_text(units.probe(self.place))
        return bool(self.supported)

    async def follow(self) -> None:
        """Bring the rules up to date with every service that starts or ends; runs until cancelled."""
        async for _ in self.context.events.listen("service."):
            try:
                await self.refresh(anew=True)
            except MixosError as error:
                log("err", f"firewall: rules of units: {error.message}")

    def rows(self) -> list[Confined]:
        """The units with rules, and whether they are confined now."""
        policy = self.policy()
        if policy is None:
            return []
        there = units.present(policy, self.place)
        states = {name: "waiting" if name not in there else "confined" for name in policy.config.units}
        if self.supported is False:
            states = dict.fromkeys(states, "unsupported")
        return [cast("Confined", {"unit": name, "state": state}) for name, state in states.items()]
