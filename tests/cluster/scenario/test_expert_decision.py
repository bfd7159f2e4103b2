"""Who runs which expert, in whole runs: by times no resource hurts, by the paper's table nothing has changed."""

from typing import Any

import pytest

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.scheduler.simulation import Served
from tests.cluster.documents import serve


def served(flop_per_byte: float, decision: str | None = None) -> tuple[dict[str, Any], Served]:
    """128 users of Qwen3-30B on one Duplex."""
    lengths = {"input": {"kind": "fixed", "tokens": 300}, "output": {"kind": "fixed", "tokens": 60}}
    scenario = {
        "model": "qwen3-30b-a3b",
        "cluster": {"device": {"preset": "duplex", "pim": {"flop_per_byte": flop_per_byte}}, "devices_per_node": 1},
        "workload": {"mode": "closed", "concurrency": 128, "num_requests": 300, "lengths": lengths},
        **({} if decision is None else {"costs": {"expert_decision": decision}}),
    }
    return serve(prepare(Scenario.model_validate(scenario)))


def run(flop_per_byte: float, decision: str | None = None) -> dict[str, Any]:
    return served(flop_per_byte, decision)[0]


@pytest.mark.medium
def test_more_flops_do_not_slow_a_run() -> None:
    slow, fast = (run(flops) for flops in (8, 16))
    assert fast["latency_s"]["itl"]["p50"] <= slow["latency_s"]["itl"]["p50"]
    assert fast["throughput"]["output_tokens_per_s"] > slow["throughput"]["output_tokens_per_s"]
    by_table = [run(flops, "paper_table")["latency_s"]["itl"]["p50"] for flops in (8, 16)]
    assert by_table[1] / by_table[0] == pytest.approx(1.196, abs=0.001)  # which is why it is not the default
    assert slow["latency_s"]["itl"]["p50"] < by_table[0]


@pytest.mark.parametrize(
    ("flop_per_byte", "digest"),
    [
        (8, "eb13100f3c0f6b31"),
        (16, "804b6ede2f0a8972"),
    ],
)
def test_the_papers_table_gives_the_steps_that_it_gave_when_there_was_nothing_else(
    flop_per_byte: float, digest: str
) -> None:
    _, done = served(flop_per_byte, "paper_table")
    assert [log.digest()[:16] for log in done.logs] == [digest]  # of steps: the table of requests has grown since
