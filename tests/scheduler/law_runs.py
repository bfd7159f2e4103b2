"""Runs of random small cases on a few replicas, for the laws that hold on every run."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.mixed_costs import make_costs
from pimserve.scheduler.policy import QueuedRequest, make_policy
from pimserve.scheduler.queue_classes import queue_classes
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.steplog import SpanColumns, expand
from pimserve.scheduler.summary import summarize
from pimserve.scheduler.usage import Hardware

from .pools import simulate_on
from .strategies import Case, cases

BLIND = {"round_robin", "random"}  # routers that see nothing of the replicas
LOOKING = ["least_outstanding", "power_of_two", "least_tokens", "least_kv", "session_affinity"]
ROUTERS = st.sampled_from([*sorted(BLIND), *LOOKING])
REPLICAS = st.integers(1, 3)


class Run:
    """A case served by `simulate`: what came of it, and every row that it wrote.

    `prefill` of the replicas compute prompts, where the others only decode.
    """

    def __init__(self, case: Case, replicas: int = 1, router: str = "round_robin", **changes: Any) -> None:
        interval = changes.pop("report_interval_s", 0.0)
        self.spec = case.spec(router=router, report_interval_s=interval, **swap_settings(case))
        self.case = case
        self.blocks: list[list[tuple[np.ndarray, int]]] = [[] for _ in range(replicas)]
        self.served: Served = simulate_on(
            **{
                "plan": case.plan,
                "workload": workload(case),
                "spec": self.spec,
                "kv_capacity_tokens": case.kv_tokens,
                "kv_groups": case.kv_groups,
                "device_kv_bytes_per_token": 1e6,
                "max_model_len": case.max_model_len,
                "replicas": changes.pop("prefill", replicas),
                "routing": case.routing,
                "seed": case.seed,
                "max_time_s": None if case.max_time_fs is None else case.max_time_fs / FS_PER_S,
                "write_rows": lambda replica, rows, _: self.blocks[replica].append(rows),
                **changes,
            }
        )
        self.table = self.served.table.structured()

    def rows(self, replica: int) -> list[tuple[int, SpanColumns]]:
        """(begin of the first step in fs, row) of a replica, in order."""
        rows = [SpanColumns(*row) for block in self.blocks[replica] for row in block.tolist()]
        return [(row.begin_ps * FS_PER_PS + row.begin_rest_fs, row) for row in rows]

    def all_rows(self) -> list[SpanColumns]:
        return [row for replica in range(len(self.blocks)) for _, row in self.rows(replica)]

    def steps(self, replica: int) -> list[tuple[int, ...]]:
        """(begin fs, duration fs, decodes, context, prefill tokens, chunks, outputs) of every step of a replica."""
        case = self.case
        exact = case.routing.mode == "exact"
        costs = make_costs(case.plan, case.pools(), replica=replica, seed=case.seed, exact=exact)
        found: list[tuple[int, ...]] = []
        for begin, row in self.rows(replica):
            single = expand(costs.at(begin), SpanColumns(*(np.array([value]) for value in row)), np.array([len(found)]))
            for duration, decodes, context in zip(*(column.tolist() for column in single[:3]), strict=True):
                found.append((begin, duration, decodes, context, row.prefill_tokens, row.chunks, row.outputs))
                begin += duration  # noqa: PLW2901 the next step's
        return found

    def summary(self) -> dict[str, Any]:
        objectives = Objectives.of(SloSpec(ttft_s=0.05, tpot_s=0.01), self.case.classes)
        return summarize(self.served, objectives, Hardware(len(self.blocks))).document()


def swap_settings(case: Case) -> dict[str, Any]:
    """Settings by which replicas, a token of whose KV cache has 1e6 bytes, have the host memory of a case."""
    if case.swap is None:
        return {}
    blocks, fs_per_block = case.swap
    block_gb = 1e6 * case.block_size / case.full_groups / 1e9
    rate = block_gb * FS_PER_S / fs_per_block
    return {"preemption": "swap", "swap_gb_per_s": rate, "swap_space_gb": (blocks + 0.5) * block_gb}


def head_of(run: Run, waiting: np.ndarray) -> np.void:
    """Of those that wait, who is next."""
    classes = queue_classes(run.case.classes, SloSpec())
    policy = make_policy(run.spec, classes)
    if policy is None:
        return waiting[0]

    def order(row: np.void) -> tuple[int, int]:
        known = [int(row[name]) for name in ("arrival_ps", "input_tokens", "predicted_tokens")]
        return policy.key(QueuedRequest(*known, *classes[row["class_id"]])), known[0]

    return min(waiting, key=order)


def workload(case: Case) -> Workload:
    arrival = [0 if r.arrival_fs is None else r.arrival_fs // FS_PER_PS for r in case.requests]
    return Workload(
        arrival_ps=np.array(arrival, np.int64),
        input_tokens=np.array([r.input_tokens for r in case.requests], np.int64),
        output_tokens=np.array([r.output_tokens for r in case.requests], np.int64),
        concurrency=case.concurrency,
        offered_rate_per_s=None,
        description="",
        rows_read=0,
        rows_dropped={},
        classes=case.classes,
        class_ids=np.array(case.class_ids, np.int8),
        max_tokens=np.array(case.max_tokens) if case.max_tokens else None,
    )


@st.composite
def runs(draw: st.DrawFn, of: st.SearchStrategy[Case] | None = None, **changes: Any) -> Run:
    """Runs of one to three replicas, of cases with some of their settings fixed."""
    case = replace(draw(cases() if of is None else of), **changes)
    if case.max_time_fs is not None:
        if case.concurrency is None:  # a stop before the first request is refused
            case.max_time_fs = max(case.max_time_fs, min((r.arrival_fs for r in case.requests), default=0) + FS_PER_PS)
        case.max_time_fs += -case.max_time_fs % FS_PER_PS  # the request table counts in picoseconds
    router = "round_robin" if case.concurrency is not None else draw(ROUTERS)
    return Run(case, draw(REPLICAS), router)
