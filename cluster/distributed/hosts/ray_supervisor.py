"""Hosts in Ray actors, on our own Ray or on a cluster.

Ray is not asked to restart actors: that takes it 4 s and more, and hides that the state is lost. A new actor under a
new name is there in about a second. When Ray itself has ended, another is started, or connected to, and gets the hosts.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Literal

from pimserve.cluster.base.supervisor import Patience
from pimserve.cluster.distributed.hosts.host_supervisor import HostDiedError, HostLostError, HostSupervisor
from pimserve.cluster.distributed.hosts.hosting import STOP_MARGIN_S, HostSpec, Started
from pimserve.cluster.distributed.hosts.ray_cluster import RayCluster
from pimserve.cluster.distributed.hosts.ray_process import ON, RayEndedError, RayProcess
from pimserve.errors import InputError

LOG = logging.getLogger(__name__)
Placement = Literal["pack", "strict_pack", "spread"]
_NEXT_TO_NOTHING = {"CPU": 0.001}  # a bundle must ask for something
_POLL_S = 0.02
_RAY = "Ray"  # among those whose deaths are counted


class HostInActor:
    """A host in a Ray actor.

    Args:
        ray: where it lives.
        number: of the actor there.
    """

    def __init__(self, ray: RayProcess, number: int) -> None:
        self.ray = ray
        self.number = number

    def poll(self) -> int | None:
        """0 if it has ended."""
        try:
            return 0 if self.ray.call("ended", self.number) else None
        except RayEndedError:
            return 0

    def started(self, timeout_s: float) -> Started | None:
        """How its start ended; None if it has not within that time."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fields = self.ray.call("started", self.number)
            except RayEndedError as error:
                raise HostDiedError(str(error)) from None
            if fields is not None:
                if len(fields) == 1:
                    raise HostDiedError(fields[0])
                return Started(*fields)
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_S)

    def stop(self, grace_s: float) -> None:
        """Tell it to stop in order."""
        with suppress(RayEndedError):
            self.ray.call("stop", self.number, grace_s)

    def kill(self) -> None:
        """End it at once."""
        with suppress(RayEndedError):
            self.ray.call("kill", self.number)


class RaySupervisor(HostSupervisor[HostInActor]):
    """A `HostSupervisor` whose hosts are Ray actors, which end with this process.

    Args:
        cluster: where they live.
        run: name of the run; actors are named RUN/NAME.gGENERATION, in a namespace of this supervisor's own.
        specs: the hosts.
        placement: of each bundle's hosts: pack: on one node if they fit; strict_pack: on one node, or fail; spread:
            each bundle on one node, different bundles on different nodes as far as there are.
        patience: limits.
    """

    def __init__(
        self,
        cluster: RayCluster,
        run: str,
        specs: Sequence[HostSpec],
        placement: Placement = "pack",
        patience: Patience | None = None,
    ) -> None:
        super().__init__(specs, patience)
        self._cluster = cluster
        self._run = run
        self._placement = placement
        self._namespace = f"{run}-{secrets.token_hex(4)}"  # names of a run that was killed may still be taken
        self._lock = threading.Lock()
        self._reserved: RayProcess | None = None  # where what the hosts need is reserved
        self._groups: list[int] = []
        self._places: dict[str, tuple[int, int]] = {}

    def _prepare(self) -> None:
        self._ray()

    def _ray(self) -> RayProcess:
        """A Ray that is there, in which the hosts have what they need.

        Raises:
            HostLostError: it ends again and again.
            InputError: it cannot be started any more, or has no place for the hosts.
        """
        with self._lock:
            while True:
                ray = self._cluster.process
                if not ray.alive():
                    if (deaths := self.died(_RAY)) > self._patience.deaths:
                        raise HostLostError(f"Ray has ended {deaths} times within {self._patience.span_s:g} s")
                    LOG.warning("note: Ray ended under the run; it goes on with another one")
                    ray = self._cluster.restart(ray)
                if ray is self._reserved:
                    return ray
                self._reserved = ray
                with suppress(RayEndedError):
                    self._reserve(ray)
                    return ray

    def _reserve(self, ray: RayProcess) -> None:
        """Reserve what the bundles need, all of it, before the first host starts."""
        self._groups, self._places = [], {}
        if lacking := self._lacking(self._cluster.total()):
            raise InputError(ON, lacking)  # no other run can give it back
        bundled = sorted((s for s in self._specs.values() if s.bundle is not None), key=lambda s: s.bundle or 0)
        bundles = [list(specs) for _, specs in groupby(bundled, key=lambda spec: spec.bundle)]
        if self._placement == "spread" and bundles:
            self._groups.append(ray.call("reserve", [_sum(map(_need, specs)) for specs in bundles], "SPREAD"))
            for index, specs in enumerate(bundles):
                self._places.update({spec.name: (self._groups[0], index) for spec in specs})
        else:
            for specs in bundles:
                self._groups.append(ray.call("reserve", [*map(_need, specs)], self._placement.upper()))
                self._places.update({spec.name: (self._groups[-1], index) for index, spec in enumerate(specs)})
        deadline = time.monotonic() + self._patience.start_s
        for group in self._groups:
            while not ray.call("reserved", group):
                self._check()
                if time.monotonic() > deadline:
                    raise InputError(ON, self._lacking(self._cluster.free()) or self._apart())
                time.sleep(_POLL_S)

    def _lacking(self, there: Mapping[str, float]) -> str:
        """What the hosts need and is not there; empty if all is."""
        asked = _sum(spec.resources for spec in self._specs.values())
        lacking = {key: need for key, need in asked.items() if need > there.get(key, 0.0)}
        if not lacking:
            return ""
        free, total = self._cluster.free(), self._cluster.total()
        needs = ", ".join(f"{key} {need:g}" for key, need in lacking.items())
        has = ", ".join(f"{key} {free.get(key, 0.0):g} free of {total.get(key, 0.0):g}" for key in lacking)
        return f"the hosts of this run need {needs}; the Ray there has {has}"

    def _apart(self) -> str:
        return (
            f"the hosts of this run fit into the Ray there, but not with placement {self._placement}: no node has room "
            f"for the hosts that belong together"
        )

    def _launch(self, name: str, generation: int) -> HostInActor:
        spec = self._specs[name]
        options = {"name": f"{self._run}/{name}.g{generation}", "namespace": self._namespace}
        while True:
            ray = self._ray()
            with suppress(RayEndedError):
                place = self._places.get(name, ())
                return HostInActor(ray, ray.call("launch", spec.to_json(), dict(spec.resources), options, place))

    @property
    def _why_late(self) -> str:
        with suppress(RayEndedError):
            return self._lacking(self._cluster.free()) or "its actor is still at it"
        return "Ray has ended"

    def _end(self, grace_s: float) -> None:
        """Stop hosts, let actors end by themselves, and give back what was reserved."""
        self.stop(grace_s, STOP_MARGIN_S)
        with suppress(RayEndedError):
            ray = self._cluster.process
            ray.call("end", [child.number for child in self.children.values() if child.ray is ray])
            if ray is self._reserved:
                for group in self._groups:
                    ray.call("give_back", group)


def _need(spec: HostSpec) -> dict[str, float]:
    return dict(spec.resources) or _NEXT_TO_NOTHING


def _sum(resources: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for needs in resources:
        for key, need in needs.items():
            total[key] = total.get(key, 0.0) + need
    return total
