"""What an engine finds of prompts against what there is to find, with room for everything."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.traces.prefix_reuse import prefix_reuse
from pimserve.loadgen.workload import Workload, generate
from pimserve.loadgen.workload_spec import WorkloadSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.simulation import Served
from tests.examples import examples
from tests.loadgen.slices import SLICES, real

from .test_prefix_cache import ROWS, SPEC, load, run
from .test_simulation import serve

NAMES = ("mooncake_fast25_conversation_0000-1200s.jsonl.gz", "mooncake_fast25_synthetic_0000-0400s.jsonl.gz")


def ideal_tokens(workload: Workload, block_size: int) -> int:
    """Tokens of full blocks of prompts that earlier ones have begun with."""
    assert workload.prefixes is not None
    return prefix_reuse(workload.prefixes.ids(block_size), block_size, workload.input_tokens).hit_tokens


def hit_tokens(served: Served) -> int:
    assert served.prefixes is not None
    return served.prefixes.hit_tokens


@examples(60)
@given(ROWS, st.integers(100, 600), st.integers(1, 3), st.sampled_from(["prompt", "oracle"]))
def test_no_more_is_found_than_there_is(
    rows: list[tuple[int, int, int]], kv_tokens: int, replicas: int, kv_admission: str
) -> None:
    """Also where requests are preempted, which then find what they had themselves."""
    workload = load(rows)
    served = run(workload, kv_tokens, run_settings={"replicas": replicas}, kv_admission=kv_admission)
    assert hit_tokens(served) <= ideal_tokens(workload, SPEC.block_size)


def test_what_a_preempted_request_finds_is_counted_apart() -> None:
    """Of two that outgrow the cache, which have nothing in common, one finds what it had itself."""
    served = run(load([(0, 0, 60), (0, 1, 60)]), 160)
    found = served.prefixes
    assert found is not None
    assert served.table["preemptions"].sum() > 0
    assert (found.queried_tokens, found.hit_tokens) == (100, 0)
    assert found.preempted_queried_tokens > found.preempted_hit_tokens > 0


@examples(30)
@given(ROWS)
def test_one_at_a_time_with_room_for_all_finds_all_that_there_is(rows: list[tuple[int, int, int]]) -> None:
    workload = load([(10_000 * number, group, outputs) for number, (_, group, outputs) in enumerate(rows)])
    assert hit_tokens(run(workload, 4000)) == ideal_tokens(workload, SPEC.block_size)


@pytest.mark.medium
@pytest.mark.parametrize("name", [pytest.param(name, marks=real) for name in NAMES])
def test_served_traces_hit_at_most_the_published_share(name: str) -> None:
    """With room for all, all full blocks that there are; the published share has partial ones too."""
    expected = json.loads((SLICES / "expected_stats.json").read_text())[name]["prefix"]
    workload = generate(WorkloadSpec.model_validate({"trace": {"path": str(SLICES / name)}}), 0)
    spec = SchedulerSpec(enable_prefix_caching=True, block_size=512, max_num_batched_tokens=8192)
    found = []
    for blocks in (1000, 20_000, 200_000):
        served = serve([], workload=workload, spec=spec, kv_capacity_tokens=512 * blocks, max_model_len=200_000)
        assert not served.table["preemptions"].any()
        found.append(hit_tokens(served))
    assert 0 < found[0] < found[1] < found[2] == ideal_tokens(workload, 512)
    assert 0.999 * expected["hit_tokens"] < found[2] < expected["hit_tokens"]
