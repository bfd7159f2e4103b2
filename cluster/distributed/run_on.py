"""Running a scenario as the command line asks: in this process, on processes of this machine, or on Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pimserve.cluster.distributed.run_spread import Spread
from pimserve.errors import InputError, shortened
from pimserve.scheduler.control import Control

if TYPE_CHECKING:
    from pimserve.cluster.run.live_control import RunObserver
    from pimserve.cluster.run.summary_schema import Summary
    from pimserve.cluster.scenario.prepared import Prepared

LOCAL, PROCESSES, OWN_RAY = "local", "processes", "ray"


def run_on(
    on: str,
    prepared: Prepared,
    out: Path | None,
    *,
    spread: Spread,
    metrics: RunObserver | None = None,
    **how: Any,  # noqa: ANN401 as `run` takes them
) -> Summary:
    """Run a scenario; returns its summary.

    Args:
        on: local, processes, ray (one of our own on this machine), auto, HOST:PORT or ray://HOST:PORT.
        prepared: what to run.
        out: the results folder.
        spread: how it is spread, but for `local`.
        metrics: is told of the run's hosts.
        how: more of `pimserve.cluster.run.run.run`.

    Raises:
        InputError: there is no such place, or the run cannot be spread so.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported: hosts may die, which is no news
    from pimserve.cluster.run.run import run  # noqa: PLC0415

    if on == LOCAL:
        return run(prepared, out, **how)
    from pimserve.cluster.distributed.deployment import distributed  # noqa: PLC0415

    spread.checked(prepared.replicas)  # before Ray is started
    with ExitStack() as stack:
        cluster = None
        if on != PROCESSES:
            from pimserve.cluster.distributed.hosts.ray_cluster import ray_on  # noqa: PLC0415

            cluster = stack.enter_context(ray_on(on))
        runtime = stack.enter_context(distributed(prepared, cluster, spread))
        if metrics is not None:
            metrics.facts = runtime.facts
        return run(prepared, out, runtime=runtime, **how)


def spread_of(
    on: str,
    shards: int | None,
    devices: Literal["planned", "lockstep", "none"] | None,
    devices_per_actor: int | None,
    resources: Sequence[str],
) -> Spread:
    """What the options of the command line mean.

    Raises:
        InputError: one of them means nothing here.
    """
    if on == LOCAL:
        given = {"--shards": shards, "--devices": devices, "--devices-per-actor": devices_per_actor}
        for option, value in {**given, "--resource": resources or None}.items():
            if value is not None:
                raise InputError(option, "goes with --on: a local run is one process")
    if devices == "none" and devices_per_actor is not None:
        raise InputError("--devices-per-actor", "has no effect with --devices none")
    if resources and on in {LOCAL, PROCESSES, OWN_RAY}:
        raise InputError("--resource", "goes with --on auto, HOST:PORT or ray://HOST:PORT, whose nodes have resources")
    return Spread(
        shards=shards or 1,
        devices=None if devices == "none" else devices or "planned",
        devices_per_actor=devices_per_actor,
        resources=tuple(_resource(text) for text in resources),
    )


def _resource(text: str) -> tuple[str, float]:
    name, equals, amount = text.partition("=")
    try:
        number = float(amount)
    except ValueError:
        number = 0.0
    if not name or not equals or not 0 < number < 1e6:
        raise InputError(f"--resource {shortened(text)}", "must be NAME=N with N above 0, such as duplex=1")
    return name, number


def control_of(speed: str | None) -> Control | None:
    """The control that paces a run, such as 60x; None for as fast as possible."""
    if speed is None:
        return None
    from pimserve.cluster.base.speed import parse_speed  # noqa: PLC0415
    from pimserve.cluster.run.pace import PacedControl  # noqa: PLC0415

    return PacedControl(parse_speed(speed))
