"""How often and how soon a failed service is started again. Pure: the time is given, in monotonic seconds.

Kept as plain numbers, since they are written beside the service and must survive the daemon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from daemon.parts.service.unit import Service


@dataclass(frozen=True)
class Attempts:
    """starts: times of the starts that still count for the limit; failures: how many in a row, without a stable run."""

    starts: tuple[float, ...] = ()
    failures: int = 0

    def started(self, now: float, service: Service) -> Attempts:
        """One more start, now; forgets those that are too old to count."""
        limit = service.start_limit
        kept = tuple(at for at in self.starts if now - limit.interval < at <= now)
        return replace(self, starts=(*kept, now)[-max(limit.burst, 1) :])

    def ended(self, ran: float, service: Service) -> Attempts:
        """The run ended after `ran` seconds: a stable one lets the delay begin anew."""
        return replace(self, failures=1 if ran >= service.stable_time else self.failures + 1)

    def exhausted(self, now: float, service: Service) -> bool:
        """Whether another start now would be one too many."""
        limit = service.start_limit
        recent = sum(now - limit.interval < at <= now for at in self.starts)
        return limit.burst > 0 and recent >= limit.burst

    def delay(self, service: Service) -> float:
        """Seconds to wait before the next start: the first delay, doubled by each further failure, up to the cap."""
        doublings = min(max(self.failures - 1, 0), 40)  # beyond that only the cap matters
        return float(min(service.restart_delay * 2**doublings, max(service.restart_delay_max, service.restart_delay)))
