"""What a finished run did over time, worked out from its results folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.pools import PlacedPool
from pimserve.cluster.results import SPAN, load_summary, load_table
from pimserve.cluster.run import prepare_pools
from pimserve.cluster.scenario import Scenario, load_scenario
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.routing import ExpertPools
from pimserve.errors import InputError
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.requests import DTYPE
from pimserve.scheduler.slowdown import NORMAL
from pimserve.scheduler.steplog import Rows


@dataclass(frozen=True)
class History:
    """A run's tables, and what its steps cost.

    Args:
        folder: the results folder.
        summary: its summary.json.
        scenario: as resolved.
        model: served.
        pools: of replicas, in the order in which these are numbered.
        costs: of each replica's steps at normal speed.
        requests: the request table.
        spans: by replica, spans of its steps in their order.
    """

    folder: Path
    summary: dict[str, Any]
    scenario: Scenario
    model: ModelSpec
    pools: tuple[PlacedPool, ...]
    costs: tuple[ReplicaCosts, ...]
    requests: NDArray[Any]
    spans: tuple[NDArray[Any], ...]

    @classmethod
    def load(cls, folder: Path) -> History:
        """Read a results folder.

        Raises:
            InputError: it has no steps, is damaged, or was written by another version.
        """
        summary = load_summary(folder)
        scenario = load_scenario(folder / "scenario.yaml")
        model, pools, routing = prepare_pools(scenario)
        costs: list[ReplicaCosts] = []
        for pool in pools:
            plan = pool.replica.plan
            said = summary["pools"][pool.name] if len(pools) > 1 and "pools" in summary else summary
            if said.get("plan_digest") != plan.digest():
                raise InputError(
                    str(folder),
                    "its steps cannot be worked out: plan_digest in summary.json is not that of scenario.yaml "
                    "(written by another version of pimserve?)",
                )
            outcomes = ExpertPools(plan.experts, routing, scenario.run.seed) if plan.experts is not None else None
            exact = routing.mode == "exact"
            for _ in range(pool.replicas):
                costs.append(ReplicaCosts(plan, outcomes, replica=len(costs), seed=scenario.run.seed, exact=exact))
        requests, steps = _table(folder, "requests", DTYPE), _table(folder, "steps", SPAN)
        if len(steps) and not 0 <= steps["replica"].min() <= steps["replica"].max() < len(costs):
            raise InputError(
                str(folder / "steps.npy"), f"has steps of replicas that the scenario has not ({len(costs)})"
            )
        ordered = np.argsort(steps["replica"], kind="stable")
        ends = np.cumsum(np.bincount(steps["replica"], minlength=len(costs)))
        spans = tuple(steps[part] for part in np.split(ordered, ends[:-1]))
        return cls(folder, summary, scenario, model, pools, tuple(costs), requests, spans)

    @property
    def end_s(self) -> float:
        """Simulated seconds at the end."""
        return float(self.summary["end_s"])

    def stretches(self, replica: int, begin: int, end: int, first_step: int) -> Iterator[tuple[Rows, ReplicaCosts]]:
        """Spans begin to end of a replica, in stretches of one speed each, and what they cost.

        Args:
            replica: its number.
            begin: the first span.
            end: after the last.
            first_step: the number of the first span's first step.
        """
        block = self.spans[replica][begin:end]
        if not len(block):
            return
        told = self.summary.get("faults", {}).get("slowdowns", ())
        slowed = [(each["first_step"], each["factor"]) for each in told if each["replica"] == replica][::-1]
        steps = first_step + np.cumsum(block["steps"]) - block["steps"]
        factors = np.array([next((factor for at, factor in slowed if at <= step), 1.0) for step in steps.tolist()])
        cuts = np.flatnonzero(np.diff(factors)) + 1
        for part, factor in zip(np.split(block, cuts), (factors[cut] for cut in (0, *cuts)), strict=True):
            rows = Rows(*(np.ascontiguousarray(part[name]) for name in Rows._fields))
            yield rows, self.costs[replica].slowed(round(factor * NORMAL))


def _table(folder: Path, name: str, kind: np.dtype[Any]) -> NDArray[Any]:
    table = load_table(folder, name)
    if table.dtype != kind or table.ndim != 1:
        raise InputError(str(folder / f"{name}.npy"), "is not a table of this version of pimserve")
    return table
