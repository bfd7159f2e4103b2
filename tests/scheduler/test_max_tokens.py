"""Most tokens that clients declare: outputs end there, and `kv_admission: no_evict` reserves KV blocks for so many."""

from typing import Any

import numpy as np
import pytest

from pimserve.loadgen.workload import WorkloadSpec, generate
from pimserve.scheduler.simulation import Served

from .pools import simulate_on
from .test_simulation import PLAN, SchedulerSpec

AT_ONCE: dict[str, Any] = {
    "arrival": {"process": "constant", "rate_per_s": 1e6},
    "num_requests": 8,
    "lengths": {"input": {"kind": "fixed", "tokens": 32}, "output": {"kind": "fixed", "tokens": 20}},
}
"""In 20 blocks of 16 tokens, in which each of them comes to have four."""


def serve(kv_admission: str, **workload: Any) -> Served:
    spec = SchedulerSpec.model_validate({"kv_admission": kv_admission})
    made = generate(WorkloadSpec.model_validate(AT_ONCE | workload), 0)
    return simulate_on(PLAN, workload=made, spec=spec, kv_capacity_tokens=320, max_model_len=160)


def batches(served: Served) -> list[int]:
    """How many requests were admitted together."""
    return np.unique(served.table["first_scheduled_ps"] // 10**11, return_counts=True)[1].tolist()


@pytest.mark.parametrize(
    ("max_tokens", "together"),
    [(None, 2), (128, 2), (1000, 2), (96, 2), (48, 4), (32, 5), (20, 5)],  # of 10, 10, 10, 8, 5, 4 and 4 blocks
)
def test_blocks_are_reserved_for_what_is_declared(max_tokens: int | None, together: int) -> None:
    served = serve("no_evict", max_tokens=max_tokens)
    first = served.table["first_scheduled_ps"]
    assert (first < served.table["finish_ps"].min()).sum() == together
    assert not served.table["preemptions"].any()
    assert served.table["emitted_tokens"].tolist() == [20] * 8
    assert serve("prompt", max_tokens=max_tokens).table["preemptions"].any()


@pytest.mark.parametrize("kv_admission", ["prompt", "no_evict", "oracle"])
def test_outputs_end_at_what_is_declared(kv_admission: str) -> None:
    table = serve(kv_admission, max_tokens=7).table
    assert (table["output_tokens"] == 7).all()
    assert table["truncated"].all()
    assert not serve(kv_admission, max_tokens=20).table["truncated"].any()


def test_classes_declare_their_own() -> None:
    classes = [{"name": "short", "max_tokens": 5}, {"name": "open"}]
    made = generate(WorkloadSpec.model_validate(AT_ONCE | {"classes": classes}), 0)
    assert made.class_ids is not None
    assert made.max_tokens is not None
    assert made.max_tokens.tolist() == np.where(made.class_ids == 1, 5, 0).tolist()
    assert made.output_tokens.tolist() == [20] * 8
    table = serve("no_evict", classes=classes).table
    assert table["output_tokens"].tolist() == np.where(made.class_ids == 1, 5, 20).tolist()
    both = generate(WorkloadSpec.model_validate(AT_ONCE | {"classes": classes, "max_tokens": 9}), 0)
    assert both.max_tokens is not None
    assert both.max_tokens.tolist() == np.where(made.class_ids == 1, 5, 9).tolist()


def test_what_is_there_when_a_closed_loop_starts_midway_was_declared_too() -> None:
    keys = {"mode": "closed", "concurrency": 4, "stagger": True, "max_tokens": 15, "num_requests": 8}
    made = generate(WorkloadSpec.model_validate({"lengths": AT_ONCE["lengths"]} | keys), 0)
    assert made.max_tokens is not None
    assert (made.input_tokens + made.max_tokens).tolist() == [32 + 15] * 8
    assert (made.max_tokens >= 1).all()


def test_a_turn_has_in_its_context_what_was_emitted() -> None:
    keys = {"sessions": {"num_sessions": 2, "turns": 3}, "num_requests": None}
    made = generate(WorkloadSpec.model_validate(AT_ONCE | keys | {"max_tokens": 6}), 0)
    assert made.turns is not None
    assert sorted(made.input_tokens.tolist()) == sorted([32, 32 + 6 + 32, 2 * (32 + 6) + 32] * 2)
