"""The pools of runs, each with its roofs, what operators do in its mean steps, and the load of its experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pimserve.cluster.base.figures import count
from pimserve.cluster.report.expert_load import ExpertLoad, expert_load
from pimserve.cluster.report.intensity import Shape, Work, shapes, work_of
from pimserve.cluster.report.pictures import Named
from pimserve.cluster.run.history import History
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import GROUPS, Group
from pimserve.device_models.device import Roof


@dataclass(frozen=True)
class Step:
    """A mean step. Args: mixed: whether it has prompts; shape: its requests; work: what operators do in it."""

    mixed: bool
    shape: Shape
    work: list[Work]

    @property
    def description(self) -> str:
        """What it is."""
        decodes = f"{count(self.shape.decodes)} decoding"
        if not self.mixed:
            return f"the mean decoding step ({decodes}, {count(self.shape.context)} tokens of context)"
        prompts = f"{count(self.shape.prompts)} x {count(self.shape.prompt_tokens)} prompt tokens"
        return f"the mean step with prompts ({decodes}, {prompts})"


@dataclass(frozen=True)
class Part:
    """A pool of a run, or all of its replicas where there are no pools.

    Args:
        run: the name of the run; empty for the only one.
        pool: the name of the pool; empty for the only one.
        group: of devices, where experts have devices of their own; else empty.
        device: what it has.
        roofs: of the device.
        steps: its mean steps: decoding only, and with prompts; without what there was not.
        load: of its experts in the first of these; None for models without.
        stationary: whether weights stay where they are.
    """

    run: str
    pool: str
    group: str
    device: str
    roofs: tuple[Roof, ...]
    steps: list[Step]
    load: ExpertLoad | None
    stationary: bool

    @property
    def name(self) -> str:
        """Short; empty for the only one."""
        return " ".join(filter(None, (self.run, self.pool, self.group)))

    @property
    def of(self) -> str:
        """To be put behind what is told of it: ", decode pool, experts"; empty for the only one."""
        return "".join(f", {text}" for text in (f"{self.pool} pool" if self.pool else "", self.group) if text)


def parts_of(runs: list[Named]) -> list[Part]:
    """The pools of all runs, or their groups of devices, that executed a step and of which that can be worked out."""
    parts: list[Part] = []
    for run in runs:
        history = run.run.history
        if history is None or not any(map(len, history.spans)):
            continue
        for pool in history.prepared.pools:
            parts += _parts_of_pool(run.name, history, pool)
    return parts


def _parts_of_pool(run: str, history: History, pool: PlacedPool) -> Iterator[Part]:
    both = [(mixed, shape) for mixed, shape in zip((False, True), shapes(history, pool), strict=True) if shape]
    groups: tuple[Group | None, ...] = GROUPS if pool.groups else (None,)
    for group, devices in zip(groups, pool.groups or (pool,), strict=True):
        steps = [Step(mixed, shape, work_of(history, pool, shape, group)) for mixed, shape in both]
        load = expert_load(history, pool, both[0][1]) if both and group != "attention" else None
        yield Part(
            run, pool.name, group or "", devices.label, devices.roofs, steps, load, devices.plan.weight_stationary
        )
