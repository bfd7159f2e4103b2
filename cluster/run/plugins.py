"""Which packages a run's devices, routers, policies and arrivals came from, where they are not pimserve's own."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points

from pimserve.cluster.scenario.prepared import Prepared
from pimserve.device_models.registry import BUILT_IN_KINDS
from pimserve.loadgen.arrival_processes import BUILT_IN_PROCESSES
from pimserve.scheduler.policy import BUILT_IN_POLICIES
from pimserve.scheduler.router import BUILT_IN_ROUTERS


def plugins_of(prepared: Prepared, routers: Iterable[str]) -> dict[str, str]:
    """Name and version of the package of each of them that is not built in, by its entry point.

    Args:
        prepared: what ran.
        routers: that it used beside the scenario's.
    """
    devices = [group.device for pool in prepared.pools for group in pool.members]
    kinds = {str(device.spec.model_dump()["kind"]) for device in devices}
    arrival = prepared.scenario.workload.arrival
    used = {
        "pimserve.devices": kinds - BUILT_IN_KINDS,
        "pimserve.routers": {prepared.scenario.scheduler.router_name, *routers} - BUILT_IN_ROUTERS,
        "pimserve.policies": {prepared.scenario.scheduler.policy} - BUILT_IN_POLICIES,
        "pimserve.arrivals": {arrival.process} - BUILT_IN_PROCESSES.keys() if arrival is not None else set(),
    }
    packages = {}
    for group, names in used.items():
        for entry in entry_points(group=group) if names else ():
            if entry.name in names:
                package = entry.value if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
                packages[f"{group}:{entry.name}"] = package
    return packages
