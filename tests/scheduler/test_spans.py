"""The solver that cuts a span of decode steps, and lazy advancing, against doing it step by step."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.evaluate import DecodeSpan
from pimserve.device_models.kv_groups import KvGroups
from pimserve.loadgen.workload import generate
from pimserve.scheduler import simulation
from pimserve.scheduler.decoding import Decoding
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.summary import digest


@given(
    base=st.integers(1, 10**6),
    growth=st.integers(0, 10**5),
    experts=st.lists(st.integers(0, 10**7), min_size=2, max_size=60),
    moe=st.booleans(),
    at=st.integers(0, 5),
    share=st.floats(0, 1),
)
def test_first_reaching_finds_the_first(
    base: int, growth: int, experts: list[int], moe: bool, at: int, share: float
) -> None:
    at = min(at, len(experts) - 2)
    most = len(experts) - at
    steps = [base + growth * k + (experts[at + k] if moe else 0) for k in range(most)]
    lasts = list(accumulate(steps, initial=0))
    limit = max(1, int(share * (lasts[-1] - 1)))
    prefix = list(accumulate(experts, initial=0)) if moe else ()
    expected = next(n for n in range(1, most + 1) if lasts[n] >= limit)
    span = DecodeSpan(most, 1, base, growth, prefix, at)
    assert span.first_reaching(limit, most, lasts[-1]) == (expected, lasts[expected])


@pytest.mark.medium
@pytest.mark.parametrize("model", ["llama-3.1-8b", "mixtral-8x7b"])
@pytest.mark.parametrize("memory", [0.9, None])
def test_lazy_advancing_changes_nothing(model: str, memory: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping before a span that would be cut gives the same bits as cutting it, also when KV blocks run out."""
    devices = 4 if model == "mixtral-8x7b" else 1
    tight = {"llama-3.1-8b": 0.2, "mixtral-8x7b": 0.285}[model]
    scenario = Scenario.model_validate(
        {
            "model": model,
            "cluster": {"device": "duplex", "replicas": 3, "devices_per_node": devices},
            "scheduler": {"router": "least_outstanding", "memory_utilization": memory or tight},
            "workload": {"num_requests": 300, "arrival": {"rate_per_s": 60}},
        }
    )
    served = _serve(scenario)
    if memory is None:
        assert served.table["preemptions"].sum() > 0
    eager = Engine.advance
    monkeypatch.setattr(Engine, "advance", lambda self, until=2**200, *, lazily=False: (eager(self, until), until)[0])
    again = _serve(scenario)
    np.testing.assert_array_equal(served.table.structured(), again.table.structured())
    assert digest(served) == digest(again)


def _serve(scenario: Scenario) -> simulation.Served:
    prepared = prepare(scenario)
    return simulation.simulate(
        prepared.pools,
        generate(scenario.workload, 1),
        scenario.scheduler,
        max_model_len=prepared.model.max_model_len_tokens,
        routing=prepared.routing,
        seed=1,
    )


def test_who_is_preempted_and_back_before_the_next_step_fills_windows_and_ends_once() -> None:
    """Two that were all who decoded: with the blocks that they gave back, each computes again what it had, and joins
    a step later with a token more, so that its windows are full, and it ends, when they would have been before."""
    running: dict[int, int] = {}
    decoding = Decoding(running, 4, KvGroups(1, 1, 9))  # windows of up to three blocks of 4 tokens
    for held, step, left in ((5, 10, 20), (8, 13, 17)):
        for request in (0, 1):
            decoding.join(request, held, step, left)
        if step == 10:
            for request in (0, 1):
                del running[request]
                decoding.leave(request, 7, 12)
    assert decoding.growth(13) == 2 * 2
    assert decoding.steps_to_change(13) == 4
    assert not decoding.advance(4, 17)
    assert decoding.growth(17) == 2
    assert decoding.steps_to_change(17) == 13
    assert decoding.advance(13, 30) == [0, 1]
