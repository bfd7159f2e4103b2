"""Hosts in Ray actors, on our own Ray or on a cluster.

Ray is not asked to restart actors: that takes it 4 s and more, and hides that the state is lost. A new actor under a
new name is there in about a second.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from pimserve.cluster.base.supervisor import Patience
from pimserve.cluster.distributed.hosts.host_supervisor import HostDiedError, HostSupervisor
from pimserve.cluster.distributed.hosts.hosting import STOP_MARGIN_S, HostActor, HostSpec, Started
from pimserve.cluster.distributed.hosts.ray_cluster import ON, RayCluster
from pimserve.errors import InputError, shortened

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

Placement = Literal["pack", "strict_pack", "spread"]
_NEXT_TO_NOTHING = {"CPU": 0.001}  # a bundle must ask for something


class HostInActor:
    """A host in a Ray actor.

    Args:
        actor: the actor.
        spec: of the host.
    """

    def __init__(self, actor: Any, spec: HostSpec) -> None:  # noqa: ANN401 no type that Ray Client shares
        self.actor = actor
        self._started = actor.start.remote(spec.to_json())
        self._lifetime = actor.lifetime.remote()

    def poll(self) -> int | None:
        """0 if it has ended; Ray says so about 10 ms after its death."""
        import ray  # noqa: PLC0415

        return 0 if ray.wait([self._lifetime], timeout=0)[0] else None

    def started(self, timeout_s: float) -> Started | None:
        """How its start ended; None if it has not within that time."""
        import ray  # noqa: PLC0415

        if not ray.wait([self._started], timeout=timeout_s)[0]:
            return None
        try:
            return Started(*ray.get(self._started))
        except ray.exceptions.RayError as error:
            raise HostDiedError(_reason(error)) from None

    def stop(self, grace_s: float) -> None:
        """Tell it to stop in order."""
        self.actor.stop.remote(grace_s)

    def kill(self) -> None:
        """End it at once."""
        import ray  # noqa: PLC0415

        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self.actor)


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
        self._groups: list[PlacementGroup] = []
        self._places: dict[str, tuple[PlacementGroup, int]] = {}

    def _check(self) -> None:
        super()._check()
        self._cluster.check()

    def _prepare(self) -> None:
        """Reserve what the bundles need, all of it, before the first host starts."""
        from ray.util import placement_group  # noqa: PLC0415

        if lacking := self._lacking(self._cluster.total()):
            raise InputError(ON, lacking)  # no other run can give it back
        bundled = sorted((s for s in self._specs.values() if s.bundle is not None), key=lambda s: s.bundle or 0)
        bundles = [list(specs) for _, specs in groupby(bundled, key=lambda spec: spec.bundle)]
        if self._placement == "spread" and bundles:
            self._groups.append(placement_group([_sum(map(_need, specs)) for specs in bundles], "SPREAD"))
            for index, specs in enumerate(bundles):
                self._places.update({spec.name: (self._groups[0], index) for spec in specs})
        else:
            for specs in bundles:
                needs = [_need(spec) for spec in specs]
                self._groups.append(placement_group(needs, self._placement.upper()))
                self._places.update({spec.name: (self._groups[-1], index) for index, spec in enumerate(specs)})
        deadline = time.monotonic() + self._patience.start_s
        for group in self._groups:
            while not group.wait(1.0):
                self._check()
                if time.monotonic() > deadline:
                    raise InputError(ON, self._lacking(self._cluster.free()) or self._apart())

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
        import ray  # noqa: PLC0415
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: PLC0415

        spec = self._specs[name]
        options: dict[str, Any] = {}
        if spec.name in self._places:
            group, index = self._places[spec.name]
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, index)
        custom = {key: need for key, need in spec.resources.items() if key not in {"CPU", "GPU"}}
        actor: Any = (
            ray.remote(HostActor)
            .options(
                name=f"{self._run}/{spec.name}.g{generation}",
                namespace=self._namespace,
                num_cpus=spec.resources.get("CPU", 0),
                num_gpus=spec.resources.get("GPU", 0),
                resources=custom,
                max_restarts=0,
                max_concurrency=3,  # start or stop, beside lifetime
                **options,
            )
            .remote()
        )
        return HostInActor(actor, spec)

    @property
    def _why_late(self) -> str:
        return self._lacking(self._cluster.free()) or "its actor is still at it"

    def _end(self, grace_s: float) -> None:
        """Stop hosts, let actors end by themselves (ray.kill runs no atexit), kill what is left."""
        import ray  # noqa: PLC0415
        from ray.util import remove_placement_group  # noqa: PLC0415

        if self._cluster.head is not None and not self._cluster.head.alive():
            return
        self.stop(grace_s, STOP_MARGIN_S)
        ends = [child.actor.__ray_terminate__.remote() for child in self.children.values()]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=STOP_MARGIN_S)
        for child in self.children.values():
            child.kill()
        for group in self._groups:
            remove_placement_group(group)


def _need(spec: HostSpec) -> dict[str, float]:
    return dict(spec.resources) or _NEXT_TO_NOTHING


def _sum(resources: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for needs in resources:
        for key, need in needs.items():
            total[key] = total.get(key, 0.0) + need
    return total


def _reason(error: Exception) -> str:
    """What Ray says of a death, in a line: the error itself, not the traceback that Ray puts before it."""
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(error)
    return shortened(" ".join(text.split()))
