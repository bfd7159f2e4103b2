"""Running a scenario as the command line asks: in this process, on processes of this machine, or on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimserve.cluster.distributed.place import LOCAL, PROCESSES
from pimserve.cluster.distributed.run_spread import Spread
from pimserve.scheduler.control import Control

if TYPE_CHECKING:
    from pimserve.cluster.distributed.deployment import Distributed
    from pimserve.cluster.run.summary_schema import Summary
    from pimserve.cluster.scenario.prepared import Prepared


def run_on(
    on: str,
    prepared: Prepared,
    out: Path | None,
    *,
    spread: Spread,
    started: Callable[[Distributed], None] = lambda _: None,
    **how: Any,  # noqa: ANN401 as `run` takes them
) -> Summary:
    """Run a scenario; returns its summary.

    Args:
        on: local, processes, ray (one of our own on this machine), auto, HOST:PORT or ray://HOST:PORT.
        prepared: what to run.
        out: the results folder.
        spread: how it is spread, but for `local`.
        started: takes the parts of the run once its hosts have started, if it has any.
        how: more of `pimserve.cluster.run.run.run`.

    Raises:
        InputError: there is no such place, or the run cannot be spread so.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported: hosts may die, which is no news
    from pimserve.cluster.run.run import run  # noqa: PLC0415

    if on == LOCAL:
        return run(prepared, out, **how)
    from pimserve.cluster.distributed.deployment import distributed  # noqa: PLC0415

    spread.checked(prepared.replicas, prepared.scenario.scheduler)  # before Ray is started
    with ExitStack() as stack:
        cluster = None
        if on != PROCESSES:
            from pimserve.cluster.distributed.hosts.ray_cluster import ray_on  # noqa: PLC0415

            cluster = stack.enter_context(ray_on(on, silence_s=spread.host_timeout_s))
        runtime = stack.enter_context(distributed(prepared, cluster, spread))
        started(runtime)
        return run(prepared, out, runtime=runtime, **how)


def control_of(speed: str | None) -> Control | None:
    """The control that paces a run, such as 60x; None for as fast as possible."""
    if speed is None:
        return None
    from pimserve.cluster.base.speed import parse_speed  # noqa: PLC0415
    from pimserve.cluster.run.pace import PacedControl  # noqa: PLC0415

    return PacedControl(parse_speed(speed))
