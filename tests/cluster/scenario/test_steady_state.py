"""The closed loop in closed form: laws, and the stage times of arXiv 2409.01141's cost model."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.scenario.steady_state import ENERGY_PARTS, ClosedLoop, SteadyState, stage
from pimserve.cluster.validation.duplex_metric import CLUSTERS
from pimserve.cluster.validation.duplex_systems import SystemName, build
from pimserve.device_models.operators import CATEGORIES
from pimserve.device_models.plan import FS_PER_S, HOST, PJ_PER_J, CostPlan, Energy, RowTerm
from pimserve.device_models.routing import POOL_SIZE, Routing
from tests.examples import examples


def state(model: str, name: SystemName, requests: int, length: int) -> SteadyState:
    system = build(model, CLUSTERS[model], name)
    return SteadyState(system.plan, system.pools, ClosedLoop(requests, length, length))


# The model with calibrated efficiencies, in ms: FC, decode attention, MoE, communication, all; then a mixed stage.
@pytest.mark.parametrize(
    ("model", "name", "requests", "length", "parts", "mixed"),
    [
        ("Mixtral", "GPU", 32, 1024, (0.27, 0.62, 8.79, 1.21, 10.89), 15.1),
        ("Mixtral", "Duplex", 32, 1024, (0.27, 0.19, 2.69, 1.21, 4.35), 14.7),
        ("Mixtral", "Duplex+PE+ET", 32, 1024, (0.27, 0.19, 2.27, 1.21, 3.93), 14.9),
        ("Mixtral", "GPU", 128, 4096, (0.29, 9.94, 8.93, 1.38, 20.5), 56.1),
        ("Mixtral", "Duplex", 128, 4096, (0.29, 2.99, 7.58, 1.38, 12.3), 49.2),
        ("GLaM", "GPU", 64, 1024, (0.44, 2.48, 13.3, 2.82, 19.0), 22.6),
        ("GLaM", "Duplex", 64, 1024, (0.44, 0.75, 4.01, 2.82, 8.02), 19.2),
        ("GLaM", "Duplex+PE+ET", 64, 1024, (0.44, 0.75, 3.51, 2.82, 7.52), 14.0),
        ("Grok1", "GPU", 64, 1024, (0.57, 0.62, 15.1, 7.57, 23.9), 34.4),
        ("Grok1", "Duplex", 64, 1024, (0.57, 0.19, 7.84, 7.57, 16.2), 33.9),
    ],
)
def test_stage_times(
    model: str, name: SystemName, requests: int, length: int, parts: tuple[float, ...], mixed: float
) -> None:
    found = state(model, name, requests, length)
    decoding = found.stage(0)
    ours = [decoding.category_s[key] * 1e3 for key in ("fc", "attention_decode", "moe", "communication")]
    assert [*ours, decoding.mean_s * 1e3] == pytest.approx(parts, rel=0.015, abs=0.006)
    assert found.stage(1).mean_s * 1e3 == pytest.approx(mixed, rel=0.02)


@given(
    requests=st.integers(1, 200),
    output=st.integers(1, 3000),
    length=st.integers(1, 5000),
    name=st.sampled_from(["GPU", "Duplex+PE+ET"]),
)
@example(requests=3, output=1732, length=1, name="GPU")  # prompts are so rare that two at once weigh in their mean
@examples(25)
def test_laws(requests: int, output: int, length: int, name: SystemName) -> None:
    system = build("OPT", CLUSTERS["OPT"], name)
    found = SteadyState(system.plan, system.pools, ClosedLoop(requests, length, output))
    shares = found.mix
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx(found.decoding_only_share, abs=2e-6)
    assert shares @ np.arange(len(shares)) == pytest.approx(requests / output, rel=1e-3)  # one prompt in Lout stages
    for prompts in range(len(shares)):
        stage = found.stage(prompts)
        assert stage.prompts + stage.decodes == requests
        assert sum(stage.category_s.values()) == pytest.approx(stage.mean_s)
        assert set(stage.category_s) == set(CATEGORIES)
        assert min(stage.energy_j.values()) >= 0
        if prompts:  # attention may shrink: a short prompt takes the place of a decoding request with a long context
            assert stage.category_s["fc"] >= found.stage(prompts - 1).category_s["fc"]
    assert found.throughput_tokens_per_s * found.mean_stage_s == pytest.approx(requests)
    durations = [found.stage(prompts).mean_s for prompts in range(len(shares) + 1)]
    quantiles = [found.t2ft_s(q) for q in (0.01, 0.5, 0.99)] + [found.tbt_s(q) for q in (0.01, 0.5, 0.99)]
    assert quantiles[:3] == sorted(quantiles[:3])
    assert quantiles[3:] == sorted(quantiles[3:])
    assert min(durations) <= min(quantiles)
    assert max(quantiles) <= max(durations)
    # Little's law: every user always has exactly one request in the loop.
    assert found.mean_e2e_s() * found.throughput_tokens_per_s / output == pytest.approx(requests, rel=1e-3)


def test_moe_stages_differ_by_routing_only() -> None:
    found = state("GLaM", "GPU", 32, 512).stage(0)
    assert found.duration_s.std() > 0
    assert sum(found.category_s.values()) == pytest.approx(found.mean_s)


def test_energy_per_token_splits_by_part_and_holds_prefill() -> None:
    long_prompt, short_prompt = (
        SteadyState(system.plan, system.pools, ClosedLoop(32, tokens, 256)).energy_per_token_j()
        for system in [build("Mixtral", CLUSTERS["Mixtral"], "GPU")]
        for tokens in (2048, 256)
    )
    assert set(long_prompt) == set(ENERGY_PARTS)
    # Every prompt token is multiplied with the same matrices once, and its cost falls on Lout output tokens.
    for part in ("fc_compute", "moe_compute"):
        assert long_prompt[part] / short_prompt[part] == pytest.approx((2048 + 255) / (256 + 255), rel=1e-3)


def test_overlap_counts_decode_attention_beyond_prefill_attention() -> None:
    alone, beside = (state("Llama3", name, 32, 1024).stage(1) for name in ("Duplex", "Duplex+PE"))
    prefill, decode = alone.category_s["attention_prefill"], alone.category_s["attention_decode"]
    assert beside.category_s["attention_prefill"] == pytest.approx(prefill)
    assert beside.category_s["attention_decode"] == pytest.approx(max(0.0, decode - prefill))
    assert alone.mean_s - beside.mean_s == pytest.approx(min(prefill, decode))


def test_row_terms_of_every_kind_and_category_count() -> None:
    s, j = FS_PER_S, PJ_PER_J
    rows = (
        RowTerm("norms", "step", "xpu", "tokens", ((0, s),), Energy(0, j, 0)),
        RowTerm("host", "step", HOST, "requests", ((100 * s, 10 * s),)),
        RowTerm("launch", "attention_decode", "xpu", "decodes", ((1000 * s, 0),), Energy(2 * j, 0, j)),
        RowTerm("launch", "attention_prefill", "xpu", "prompts", ((3000 * s, 0),), alternatives=(((0, 2000 * s),),)),
        RowTerm("all-reduce", "communication", "link", "tokens", ((7 * s, 0),), Energy(j, j, j)),
    )
    plan = CostPlan(2, 2, ("xpu",), rows, (), (), None)
    # Of 3 requests and a prompt of 5 tokens, the busier group has 2 and the prompt.
    found = stage(plan, None, decodes=3, mean_context=10, prompts=1, prompt_tokens=5)
    expected = {"step": 7 + 100 + 30, "attention_decode": 1000, "attention_prefill": 2000, "communication": 7}
    assert found.category_s == {**dict.fromkeys(CATEGORIES, 0), **expected}
    assert found.mean_s == sum(expected.values())
    joules = {"step_dram": 8, "attention_dram": 2 * 2, "attention_compute": 3}
    assert found.energy_j == {**dict.fromkeys(ENERGY_PARTS, 0), **joules}


def test_stages_of_replicas_with_experts_on_devices_of_their_own_are_those_of_the_engine() -> None:
    placement = "cluster.placement={experts: {device: h100}, micro_batches: 3}"
    (pool,) = prepare(load_scenario(None, ["cluster.devices_per_node=2", placement])).pools
    costs = pool.costs(Routing(), 0)
    found = stage(pool.plan, costs.pools, decodes=8, mean_context=700, prompts=0, prompt_tokens=0)
    engine = [costs.decode_span(step, 8, 8 * 700, 1).duration_fs(1) / FS_PER_S for step in range(POOL_SIZE)]
    assert sorted(found.duration_s.tolist()) == pytest.approx(sorted(engine), rel=1e-12)
    assert sum(found.category_s.values()) == pytest.approx(found.mean_s)
    assert found.category_s["communication"] > 0
