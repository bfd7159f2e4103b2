"""The aggregated engine against the naive one: the same steps and the same request times, to the bit."""

from dataclasses import replace

import pytest
from hypothesis import assume, given

from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.plan import FS_PER_PS
from pimserve.loadgen.workload import Workload, generate
from pimserve.scheduler.costs import replica_offset
from pimserve.scheduler.shared_kv_tier import SharedKvTier
from pimserve.scheduler.tier_turns import TierTurns
from tests.examples import examples

from .batching_strategies import batching_cases
from .engine_runs import assert_equal, compare, end_of, end_run, in_picoseconds, make_case, rows_of, run_engine
from .plan_strategies import mixed_plans
from .prefix_strategies import prefix_cases, shared_tier_cases, tier_cases, windowed_prefix_cases
from .received_strategies import received_cases
from .reference_engine import ReferenceRequest, reference_events
from .reference_runs import run_references
from .shedding_strategies import shedding_cases
from .speculative_strategies import speculative_cases
from .strategies import Case, cases
from .swapping_strategies import swapping_cases

OTHERS_WITH_TIERS = shedding_cases(tier_cases()) | speculative_cases().filter(lambda case: bool(case.tiers))


@pytest.mark.medium
@examples(200)
@given(cases())
def test_same_steps_and_same_requests(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(200)
@given(prefix_cases())
def test_same_with_a_prefix_cache(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(300)
@given(windowed_prefix_cases())
def test_same_with_a_prefix_cache_and_attention_windows(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(60)
@given(tier_cases())
def test_same_with_tiers(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(150)
@given(tier_cases(windowed=True))
def test_same_with_tiers_and_attention_windows(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(100)
@given(shared_tier_cases(tier_cases() | tier_cases(windowed=True)) | shared_tier_cases(OTHERS_WITH_TIERS))
def test_same_where_replicas_share_a_tier(alike: list[Case]) -> None:
    """Of several replicas, which the reference runs one step after the other in order of time."""
    tiers = alike[0].reference_tiers()
    for case in alike:
        in_picoseconds(case)
    own = [[*case.reference_tiers()[:-1], tiers[-1]] for case in alike]
    expected = run_references(
        [reference_events(**case.arguments() | {"tiers": mine}) for case, mine in zip(alike, own, strict=True)]
    )
    first = alike[0]
    shared = SharedKvTier(first.tiers[-1], first.block_bytes, first.kv_groups)
    made = [make_case(case, shared) for case in alike]
    engines = [(place, engine) for place, (_, _, engine) in enumerate(made)]
    turns = TierTurns(engines, [0 for _ in made], written_back=any(tier.write == "back" for tier in first.tiers))
    turns.advance(end_of(first))
    shared.end()
    for case, result, (log, table, engine) in zip(alike, expected, made, strict=True):
        end_run(case, log, table, engine)
        compare(case, result, log, table, engine)


@pytest.mark.medium
@examples(120)
@given(speculative_cases())
def test_same_with_drafts_to_verify(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(120)
@given(speculative_cases(elsewhere=True))
def test_same_with_drafts_to_verify_and_experts_on_devices_of_their_own(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(60)
@given(speculative_cases(elsewhere=True))
def test_one_micro_batch_over_no_link_takes_what_one_group_of_devices_takes(case: Case) -> None:
    """Where attention is in one part, and the others' experts are as fast; every layer is drawn, as between token
    counts of pools one rounds by layer, and the other by step."""
    plan, routing = case.plan, replace(case.routing, mode="exact")
    assert plan.micro_batches is not None
    assume(isinstance(plan.experts, ExpertTerm))  # no group of devices has hot and cold ones
    micro = replace(plan.micro_batches, cuts=((1, 1),))
    rows = tuple(term for term in plan.rows if term.stage == "attention")
    alone = replace(plan, data_parallel=1, rows=rows, link=None)
    (log, table, _), (other_log, other_table, _) = (
        run_engine(replace(case, plan=replace(alone, micro_batches=each), routing=routing)) for each in (micro, None)
    )
    assert log.all_steps == other_log.all_steps
    assert rows_of(table) == rows_of(other_table)
    assert log.sampled_rows == other_log.sampled_rows
    assert log.energy_pj == other_log.energy_pj


@pytest.mark.medium
@examples(60)
@given(
    received_cases(cases() | prefix_cases() | windowed_prefix_cases())
    | received_cases(speculative_cases() | speculative_cases(elsewhere=True))
)
def test_same_where_requests_bring_their_kv_cache(case: Case) -> None:
    assert all(request.arrival_fs is not None for request in case.requests)
    assert_equal(case)


@pytest.mark.medium
@examples(60)
@given(swapping_cases())
def test_same_where_blocks_of_preempted_requests_go_to_host_memory(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(60)
@given(shedding_cases() | shedding_cases(prefix_cases()) | shedding_cases(tier_cases()))
def test_same_where_requests_are_rejected_as_they_arrive(case: Case) -> None:
    assert all(request.arrival_fs is not None for request in case.requests)
    assert_equal(case)


@pytest.mark.medium
@examples(300)
@given(batching_cases())
def test_same_where_prompts_have_steps_of_their_own(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(150)
@given(batching_cases(prefix_cases()) | batching_cases(windowed_prefix_cases()))
def test_same_where_prompts_have_steps_of_their_own_and_a_prefix_cache(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(100)
@given(batching_cases(shedding_cases()) | batching_cases(shedding_cases(prefix_cases())))
def test_same_where_prompts_have_steps_of_their_own_and_requests_are_rejected(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(30)
@given(batching_cases(cases(mixed_plans())))
def test_same_where_prompts_have_steps_of_their_own_and_experts_devices(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(80)
@given(cases(mixed_plans()))
def test_same_with_experts_on_devices_of_their_own(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@pytest.mark.parametrize(
    "overrides",
    [
        ["cluster.experts=tp"],
        ["cluster.device.processor_selection=per_layer", "scheduler.batching=stage"],
        ["scheduler.batching=prefill_first", "scheduler.max_num_batched_tokens=300"],
        ["scheduler.batching=decode_first"],
        ["scheduler.memory_utilization=0.276", "scheduler.max_num_seqs=24"],  # KV for a few requests: preemptions
        ["scheduler.batching=prefill_first", "scheduler.memory_utilization=0.276", "scheduler.max_num_seqs=24"],
        ["scheduler.batching=decode_first", "scheduler.memory_utilization=0.276", "scheduler.max_num_seqs=24"],
        ["routing={popularity: zipf, zipf_exponent: 0.8}", "cluster.nodes=2", "cluster.experts=tp"],
        ["routing.mode=exact", "workload.num_requests=12"],
        ["model=gpt-oss-120b", "cluster.device=h100", "cluster.tensor_parallel=2"],
        ["model=gpt-oss-120b", "cluster.device=h100", "cluster.devices_per_node=1", "scheduler.kv_blocks=700"],
        [
            "model=llama-3.1-8b",
            "cluster.device=a100",
            "cluster.devices_per_node=1",
            "scheduler.max_num_batched_tokens=300",
        ],
        ["cluster.placement={experts: {device: h100}, micro_batches: 3}", "workload.num_requests=16"],
        [
            "workload.num_requests=16",
            "cluster.placement={experts: {device: {preset: aimc-realistic, spread: experts}}}",
            "routing={popularity: zipf, zipf_exponent: 0.8}",
        ],
        [
            "model=gpt-oss-120b",
            "workload.num_requests=12",
            "cluster.device=h100",
            "cluster.tensor_parallel=1",
            "cluster.placement={experts: {device: duplex}, micro_batches: 2, lm_head: experts}",
        ],
        [
            "workload.num_requests=12",
            "cluster.device=h100",
            "cluster.devices_per_node=4",
            "cluster.tensor_parallel=2",
            "cluster.placement={experts: {device: {preset: aimc-realistic, spread: experts}}, lm_head: experts}",
            "scheduler.speculative={method: mtp, num_speculative_tokens: 2, acceptance: 0.7}",
        ],
    ],
)
def test_same_on_devices_of_the_catalogue(overrides: list[str]) -> None:
    """Real plans and pools, spans of tens of steps that arrivals cut."""
    changes = ["workload.num_requests=25", *overrides]
    scenario = load_scenario(None, changes)
    prepared = prepare(scenario)
    for rate in (4, 40):
        workload = generate(load_scenario(None, [*changes, f"workload.arrival.rate_per_s={rate}"]).workload, 5)
        assert_equal(case_of(scenario, prepared, workload))


def case_of(scenario: Scenario, prepared: Prepared, workload: Workload) -> Case:
    scheduler = scenario.scheduler
    (pool,) = prepared.pools
    blocks, groups = pool.kv_blocks(scheduler.block_size), pool.kv_groups
    longest = min(prepared.model.max_model_len_tokens, pool.request_tokens_in_blocks(scheduler))
    return Case(
        plan=pool.plan,
        routing=prepared.routing,
        seed=5,
        replica=0,
        offset=replica_offset(5, 0),
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.chunk_tokens,
        batching=None if scheduler.batching in {"chunked", "stage"} else scheduler.batching,
        block_size=scheduler.block_size,
        kv_capacity_blocks=blocks,
        max_model_len=longest,
        kv_admission=scheduler.kv_admission,
        requests=[
            ReferenceRequest(int(at) * FS_PER_PS, int(tokens), int(emits))
            for at, tokens, emits in zip(
                workload.arrival_ps, workload.input_tokens, workload.output_tokens, strict=True
            )
        ],
        concurrency=None,
        max_time_fs=None,
        full_groups=groups.full,
        windowed_groups=groups.windowed,
        window_tokens=groups.window_tokens,
        speculative=scheduler.speculative,
    )
