"""What can go wrong between hosts and those who drive them, beside wrong input."""

from __future__ import annotations

from pimserve.errors import PimserveError


class DeviceMismatchError(PimserveError):
    """A device's own plan, time or traffic is not what the engine says; the run cannot go on."""


class WrongStateError(PimserveError):
    """A host cannot take this now: it drains, has no plan, or something before it is missing."""


class HostUnavailableError(PimserveError):
    """Hosts cannot be reached; once each is replaced (`DeviceLink.replace`), the call may be repeated."""

    def __init__(self, hosts: tuple[str, ...], reason: str) -> None:
        super().__init__(f"device host {', '.join(hosts)}: {reason}")
        self.hosts = hosts
        self.reason = reason
