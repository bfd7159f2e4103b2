"""FLOPs, bytes and rates of operators: what the plan says, below every roof."""

from functools import cache

import numpy as np
import pytest

from pimserve.cluster.report.expert_load import expert_load
from pimserve.cluster.report.intensity import Shape, shapes, share_of_roof, work_of
from pimserve.cluster.run.history import History
from pimserve.cluster.scenario.steady_state import ClosedLoop, stage
from pimserve.cluster.validation.op_per_byte import intensity
from pimserve.device_models.evaluate import counts_of, evaluate, parts_of, shape_of, way_of
from pimserve.device_models.experts import STATION_FS
from pimserve.device_models.operators import operators_of
from pimserve.device_models.routing import POOL_SIZE
from pimserve.device_models.step import StepShape
from tests.cluster.report.runs import AIMC, MEASURED, make_run

OPTIONS = {
    "duplex": (),
    "sliced": ("cluster.experts=tp",),
    "gpu": ("cluster.device=h100",),
    "score_matrix": ("cluster.device={preset: duplex, prefill_attention: score_matrix}",),
    "bank_pim": ("cluster.device=duplex-bank-pim", "cluster.experts=ep"),
    "per_layer": ("cluster.device={preset: duplex, processor_selection: per_layer}",),
    "data_parallel": ("cluster.tensor_parallel=2", "cluster.experts=ep"),
    "windows": ("model=gpt-oss-120b", "cluster.device=h100", "cluster.experts=ep"),
    "latent": ("model=deepseek-v3", "cluster.device=h200", "cluster.devices_per_node=8", "cluster.experts=ep"),
    "dense": ("model=llama-3.1-8b",),
    "measured": MEASURED,
    "measured_moe": ("costs.setting=measured", "costs.backend=vllm"),
    "aimc": AIMC,
}


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Histories of small runs by name, each made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("runs") / name
            made[name] = History.load(make_run(folder, "workload.num_requests=40", *OPTIONS[name]))
        return made[name]

    return get


@pytest.mark.medium
@pytest.mark.parametrize("name", OPTIONS)
def test_no_operator_is_faster_than_its_roof(history, name):
    found = history(name)
    (pool,) = found.prepared.pools
    for shape in shapes(found, pool):
        work = work_of(found, pool, shape)
        assert work or (name == "aimc" and not shape.decodes)
        for each in work:
            reached = share_of_roof(each, pool.roofs)
            assert reached is not None, each
            assert 0 < reached <= 1 + 1e-4, each  # times are whole femtoseconds


@pytest.mark.parametrize(
    "name", ["duplex", "sliced", "gpu", "per_layer", "data_parallel", "windows", "latent", "dense"]
)
@pytest.mark.parametrize("prompts", [0, 1])
def test_operators_and_links_take_the_time_of_the_step(history, name, prompts):
    found = history(name)
    (pool,) = found.prepared.pools
    plan = pool.plan
    shape = Shape(decodes=8, context=8 * 700, prompts=prompts, prompt_tokens=500 * prompts, outputs=8 + prompts)
    whole = stage(
        plan, found.costs[0].pools, decodes=8, mean_context=700, prompts=prompts, prompt_tokens=shape.prompt_tokens
    )
    work = work_of(found, pool, shape)
    operators = sum(each.seconds for each in work)
    if way_of(
        plan, shape_of(plan, 8, shape.context, shape.chunks)
    ).beside_prefill:  # side by side: the longer one counts
        both = ("attention_prefill", "attention_decode")
        operators -= min(sum(each.seconds for each in work if each.category == kind) for kind in both)
    links = whole.category_s["communication"]
    assert operators + links == pytest.approx(whole.mean_s, rel=1e-6)


@pytest.mark.parametrize("name", ["duplex", "score_matrix", "latent", "dense"])
@pytest.mark.parametrize("mixed", [False, True])
def test_intensities_are_those_of_the_papers_stages(history, name, mixed):
    found = history(name)
    (pool,) = found.prepared.pools
    loop = ClosedLoop(requests=6, input_tokens=400, output_tokens=6)
    prompts = 1 / (1 - (1 - 1 / 6) ** 6) if mixed else 0.0
    operators = operators_of(found.prepared.model, found.prepared.scenario.cluster.split)
    # The paper's mixed stage has a broken number of prompts; attention does not depend on it.
    shape = Shape(6, 6 * 400, int(mixed), 400 * int(mixed), 6)
    work = work_of(found, pool, shape)

    def ours(category):
        mine = [each for each in work if each.category == category and each.name != "lm head"]
        return sum(each.flops for each in mine) / sum(each.moved for each in mine)

    assert ours("attention_decode") == pytest.approx(intensity(operators, "Attn_decode", loop, 1, mixed=mixed))
    if mixed and name == "score_matrix":
        assert ours("attention_prefill") == pytest.approx(intensity(operators, "Attn_prefill", loop, 1, mixed=True))
    if not prompts:
        head = [op for op in operators if getattr(op, "name", "") != "lm head"]
        assert ours("fc") == pytest.approx(intensity(head, "FC", loop, 1, mixed=False))


@pytest.mark.parametrize(
    ("model", "devices", "experts"),
    [("mixtral-8x7b", 4, (7.96, 15.8, 31.4)), ("glam-143b", 8, (1.56, 2.30, 4.06))],
)
def test_intensities_are_those_that_the_paper_shows(tmp_path, model, devices, experts):
    """arXiv 2409.01141, fig. 4(b): decoding with batches of 32, 64 and 128, without the product with the vocabulary."""
    options = (f"model={model}", f"cluster.devices_per_node={devices}", "cluster.experts=ep", "costs.lm_head=false")
    found = History.load(make_run(tmp_path / "run", "workload.num_requests=20", *options))
    (pool,) = found.prepared.pools
    for batch, moe, fc in zip((32, 64, 128), experts, (31, 59, 111), strict=True):
        work = work_of(found, pool, Shape(batch, batch * 2560, 0, 0, batch))
        (routed,) = (each for each in work if each.name == "routed experts")
        assert routed.intensity == pytest.approx(moe, rel=0.005)
        dense = [each for each in work if each.category == "fc"]
        assert sum(e.flops for e in dense) / sum(e.moved for e in dense) == pytest.approx(fc, rel=0.04)
        (attention,) = (each for each in work if each.category == "attention_decode")
        assert attention.intensity == pytest.approx(
            found.prepared.model.attention.heads / found.prepared.model.attention.kv_heads
        )


def test_decode_attention_of_duplex_is_at_the_efficiency_of_logic_pim(history):
    found = history("duplex")
    (pool,) = found.prepared.pools
    work = {each.name: each for each in work_of(found, pool, shapes(found, pool)[0])}
    attention = work["attention, decode"]
    assert attention.units == ("logic_pim",)
    assert attention.intensity == pytest.approx(4.0)  # query heads per KV head, 16 bit
    assert share_of_roof(attention, pool.roofs) == pytest.approx(0.64, rel=1e-3)
    assert share_of_roof(work["qkv"], pool.roofs) == pytest.approx(0.77, rel=1e-3)


def test_weights_on_crossbars_do_not_move(history):
    found = history("aimc")
    (pool,) = found.prepared.pools
    (only,) = work_of(found, pool, shapes(found, pool)[0])
    assert only.category == "attention_decode"
    assert only.intensity == pytest.approx(8.0)  # query heads per KV head, 8 bit
    assert [roof.peak_flop_per_s for roof in pool.roofs] == [None]


def test_mean_steps_are_those_of_the_run(history):
    found = history("duplex")
    (pool,) = found.prepared.pools
    decoding, mixed = shapes(found, pool)
    spans = found.spans[0]
    alone = spans[spans["chunks"] == 0]
    assert decoding.decodes == max(1, round((alone["decodes"] * alone["steps"]).sum() / alone["steps"].sum()))
    assert decoding.prompts == 0
    assert mixed.prompts >= 1
    prompts = spans[spans["chunks"] > 0]
    assert mixed.prompt_tokens == round(prompts["prefill_tokens"].sum() / prompts["chunks"].sum())
    assert decoding.tokens == decoding.decodes


def test_loads_of_experts_add_up(tmp_path):
    zipf = ("routing.popularity=zipf", "routing.zipf_exponent=1.0", "cluster.experts=ep", "workload.num_requests=20")
    found = History.load(make_run(tmp_path / "zipf", *zipf))
    (pool,) = found.prepared.pools
    load = expert_load(found, pool, Shape(16, 16 * 500, 0, 0, 16))
    assert load.share.sum() == pytest.approx(load.top_k)
    assert load.share.max() > 2 * load.share.min()
    assert load.groups == 4
    assert 1 < load.busiest < load.busiest_p99 <= load.groups
    # An expert that nobody chose is not active: 1 less the probability of that, for each.
    assert load.active == pytest.approx((1 - (1 - load.share) ** 16).sum(), rel=0.02)


def test_experts_that_all_share_have_no_busiest_group(history):
    found = history("sliced")
    (pool,) = found.prepared.pools
    load = expert_load(found, pool, Shape(4, 4 * 500, 0, 0, 4))
    assert load.busiest is None
    assert np.allclose(load.share, load.share[0])


def test_a_dense_model_has_no_experts(history):
    found = history("dense")
    assert expert_load(found, found.prepared.pools[0], Shape(4, 4 * 500, 0, 0, 4)) is None


def test_windowed_layers_are_operators_of_their_own(history):
    found = history("windows")
    names = [each.name for each in work_of(found, found.prepared.pools[0], Shape(4, 4 * 500, 1, 300, 5))]
    assert "attention, decode, window of 128" in names
    assert "attention, prefill, window of 128" in names
    assert len(names) == len(set(names))


PLACED = "micro_batches: 3, link: {gb_per_s: 100}"
ELSEWHERE = {
    "experts alone": f"cluster.placement={{experts: {{device: h100}}, {PLACED}}}",
    "with the head": f"cluster.placement={{experts: {{device: h100}}, lm_head: experts, {PLACED}}}",
    "on crossbars": f"cluster.placement={{experts: {{device: aimc-realistic}}, {PLACED}}}",
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Histories of small runs with experts on devices of their own."""
    folder = tmp_path_factory.mktemp("mixed")
    options = ("workload.num_requests=30", "cluster.devices_per_node=2")
    return cache(lambda name: History.load(make_run(folder / name, *options, ELSEWHERE[name])))


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("prompts", [0, 1])
def test_operators_of_a_group_take_the_time_of_its_devices(mixed, name, prompts):
    found = mixed(name)
    (pool,) = found.prepared.pools
    shape = Shape(decodes=8, context=8 * 700, prompts=prompts, prompt_tokens=500 * prompts, outputs=8 + prompts)
    step = shape_of(pool.plan, 8, shape.context, shape.chunks, shape.outputs)
    features = found.costs[0].experts_features(
        StepShape(*(np.full(POOL_SIZE, value) for value in step)), np.arange(POOL_SIZE)
    )
    whole = evaluate(pool.plan, step)
    operators = {operator.category: 0 for operator in whole.operators}
    for operator in whole.operators:
        operators[operator.category] += operator.time_fs
    ours = work_of(found, pool, shape, "attention")
    seconds = sum(each.seconds for each in ours)
    if prompts:  # side by side: the longer one counts
        both = [[each.seconds for each in ours if each.name == f"attention, {kind}"] for kind in ("prefill", "decode")]
        assert all(both)
        assert seconds - min(map(sum, both)) <= (whole.duration_fs - operators["communication"]) / 1e15 * (1 + 1e-9)
    else:
        assert seconds == pytest.approx((whole.duration_fs - operators["communication"]) / 1e15, rel=1e-9)
    theirs = work_of(found, pool, shape, "experts")
    assert {each.name for each in theirs} == {
        "experts alone": {"routed experts"},
        "with the head": {"routed experts", "lm head"},
        "on crossbars": set(),
    }[name]
    if theirs:
        links = sum(
            row.time_fs(counts_of(pool.plan, part)[0][row.rows])
            for part in parts_of(pool.plan, step)
            for row in pool.plan.rows
            if row.stage == "experts" and row.category == "communication"
        )
        work = float(features[:, STATION_FS].mean())
        assert sum(each.seconds for each in theirs) == pytest.approx((work - links) / 1e15, rel=1e-6)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_no_operator_of_a_group_is_faster_than_its_roof(mixed, name):
    found = mixed(name)
    (pool,) = found.prepared.pools
    for shape in shapes(found, pool):
        for group, devices in zip(("attention", "experts"), pool.groups, strict=True):
            for each in work_of(found, pool, shape, group):
                reached = share_of_roof(each, devices.roofs)
                assert reached is not None, each
                assert 0 < reached <= 1 + 1e-4, each


def test_every_micro_batch_reads_the_weights_again(mixed):
    found = mixed("experts alone")
    (pool,) = found.prepared.pools
    (qkv,) = (each for each in work_of(found, pool, Shape(9, 9 * 700, 0, 0, 9), "attention") if each.name == "qkv")
    width = (16 + 2 * 4) * 128  # of one of two devices
    assert qkv.flops == 32 * 2 * 9 * 4096 * width
    assert qkv.moved == 32 * (3 * 2 * 4096 * width + 2 * 9 * (4096 + width))
    assert expert_load(found, pool, Shape(9, 9 * 700, 0, 0, 9)).tokens == 3
