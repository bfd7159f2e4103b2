"""Speculative decoding: what is expected of a step, what is drawn, what it costs, and what is refused."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.kv_groups import NO_WINDOWS
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.workload import generate
from pimserve.scheduler.acceptance import STEPS, Acceptance
from pimserve.scheduler.handover import Link
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.requests import SERVABLE
from pimserve.scheduler.simulation import Deployment, Served, simulate
from pimserve.scheduler.speculative_decoding import SpeculativeDecoding
from pimserve.scheduler.speculative_spec import SpeculativeSpec
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .speculative_strategies import speculations
from .strategies import windows
from .test_windows import LENGTHS, Kept, Windows


def spec_of(drafts: int = 3, **given: object) -> SpeculativeSpec:
    return SpeculativeSpec.model_validate({"method": "ngram", "num_speculative_tokens": drafts, **given})


@pytest.mark.parametrize(
    ("drafts", "given", "expected"),
    [
        (3, {"acceptance": 0.5}, 1.875),  # Leviathan et al., equation 1
        (1, {"acceptance": 0.9}, 1.9),
        (4, {"acceptance": 0.0}, 1.0),
        (4, {"acceptance": 1.0}, 5.0),
        (3, {"acceptance": [0.8, 0.5, 0.25]}, 1 + 0.8 + 0.4 + 0.1),  # AIConfigurator's nextn_accept_rates
        # Acceptance lengths of InferenceX: GLM-5.2, DeepSeek-V4, MiniMax-M3, Kimi-K3 (2, 3 and 7 drafts), DSV4.1-flash
        *[
            (drafts, {"mean_acceptance_length": length}, length)
            for drafts, length in ((3, 2.99), (3, 2.49), (3, 2.83), (2, 2.51), (3, 3.00), (7, 3.84), (5, 3.51))
        ],
    ],
)
def test_expected_tokens(drafts: int, given: dict[str, object], expected: float) -> None:
    spec = spec_of(drafts, **given)
    assert spec.expected_tokens == pytest.approx(expected, rel=1e-12)
    drawn = Acceptance(spec, 5).emitted
    assert drawn.mean() == pytest.approx(expected, abs=drafts**2 / STEPS)  # each number as often as can be
    if "mean_acceptance_length" in given:  # the two whole numbers beside it
        assert set(drawn.tolist()) <= {int(expected), int(expected) + 1}


@given(st.floats(0, 0.99), st.integers(1, 20))
def test_one_rate_gives_a_geometric_series(rate: float, drafts: int) -> None:
    expected = (1 - rate ** (drafts + 1)) / (1 - rate)
    assert spec_of(drafts, acceptance=rate).expected_tokens == pytest.approx(expected, rel=1e-9)


@given(speculations(), st.integers(0, 2**40))
@examples(50)
def test_as_often_as_the_law_says(spec: SpeculativeSpec, seed: int) -> None:
    drawn = Acceptance(spec, seed).emitted
    counts = np.bincount(drawn, minlength=spec.verify_tokens + 1)
    assert len(drawn) == STEPS
    assert counts[0] == 0
    assert np.abs(counts[1:] - STEPS * np.array(spec.law)).max() <= 1


@given(speculations(), st.integers(0, 10**6), st.integers(0, 10**9), st.integers(1, 5000), st.integers(0, 5000))
@examples(100)
def test_a_request_emits_what_is_left_and_no_more(
    spec: SpeculativeSpec, request_number: int, step: int, left: int, later: int
) -> None:
    acceptance = Acceptance(spec, 3)
    tokens = acceptance.from_step(request_number, step, left)
    assert tokens.sum() == left
    assert tokens.min() >= 1
    assert tokens.max() <= spec.verify_tokens
    # A step gives a request the same whenever it joined; but for its last one.
    if later < len(tokens):
        rest = acceptance.from_step(request_number, step + later, left - int(tokens[:later].sum()))
        assert rest.tolist() == tokens[later:].tolist()


@given(speculations(), st.data())
@examples(60)
def test_restored_sums_go_on_as_they_were(spec: SpeculativeSpec, data: st.DataObject) -> None:
    def fresh() -> tuple[dict[int, int], SpeculativeDecoding]:
        running: dict[int, int] = {}
        kv = KvCache(10**6, block_size, groups, lookahead_tokens=spec.lookahead_tokens)
        return running, SpeculativeDecoding(running, kv, Acceptance(spec, 1), 2, lambda request: request % 2)

    block_size, groups = data.draw(st.integers(1, 20)), data.draw(st.just(NO_WINDOWS) | windows())
    running, decoding = fresh()
    for request in range(data.draw(st.integers(1, 6))):
        running[request] = 0
        decoding.join(request, data.draw(st.integers(1, 50)), 7, data.draw(st.integers(1, 3000)))
    step = 7 + data.draw(st.integers(0, 40))
    for at in range(8, step + 1):
        for request in decoding.advance(1, at):
            joined = decoding._joined[request]
            decoding.leave(request, joined.held + joined.left, at)
            del running[request]
    other_running, other = fresh()
    other_running.update(running)
    other.restore(json.loads(json.dumps(decoding.state())), step, {})
    while running:
        assert (other.count, other.context) == (decoding.count, decoding.context)
        assert (other.emits(step), other.growth(step)) == (decoding.emits(step), decoding.growth(step))
        assert other.emits_by_tenant(step) == decoding.emits_by_tenant(step)
        assert sum(decoding.emits_by_tenant(step)) == decoding.emits(step)
        step += 1
        ended = decoding.advance(1, step)
        assert other.advance(1, step) == ended
        for request in ended:
            joined = decoding._joined[request]
            held = joined.held + joined.left
            assert decoding.leave(request, held, step) == other.leave(request, held, step)
            del running[request], other_running[request]
    assert decoding.context == other.context == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs either acceptance or mean_acceptance_length"),
        ({"acceptance": 0.5, "mean_acceptance_length": 2}, "needs either acceptance or mean_acceptance_length"),
        ({"acceptance": [0.5, 0.5]}, "one number, or 3"),
        ({"mean_acceptance_length": 4.5}, "from 1 to 4"),
        ({"acceptance": 0.5, "model": "llama-3.1-8b"}, "goes with method: draft_model"),
        ({"acceptance": 0.5, "method": "draft_model"}, "needs either model or draft_time_share"),
    ],
)
def test_what_is_said_must_go_together(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec_of(**given)


TINY = "model={preset: llama-3.1-8b, layers: 1, vocab: 64, hidden: 512, ffn: {intermediate: 512}}"
MTP = "scheduler.speculative={method: mtp, num_speculative_tokens: 3, acceptance: 0.6}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=gpt-oss-120b", "cluster.device=h100", "scheduler.enable_prefix_caching=true"], "attention windows"),
        (["cluster.device=aimc-realistic", "cluster.devices_per_node=1", TINY], "of this kind"),
        (["cluster.device=aimc-realistic", "cluster.placement={experts: {device: h100}}"], "of this kind"),
        (
            [
                "scheduler.speculative={num_speculative_tokens: 3, acceptance: 0.6, method: draft_model, "
                "draft_time_share: 0.1}",
                "cluster.pools={prefill: {}, decode: {placement: {experts: {device: h100}}}}",
            ],
            "with experts on devices of their own: use method mtp, or name the model",
        ),
        (["scheduler.max_num_seqs=600"], "must be at least max_num_seqs \\(600\\) x 4"),
    ],
)
def test_what_is_not_modelled_together_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(load_scenario(None, [MTP, *overrides]))


BIG = "scheduler.speculative={method: draft_model, model: llama-3-70b, num_speculative_tokens: 3, acceptance: 0.6}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=llama-3.1-8b", "cluster={device: h100, devices_per_node: 1}"],
            r"cannot draft on the devices of llama-3\.1-8b: llama-3-70b does not fit: .*; use more devices",
        ),
        (
            ["model=llama-3-70b", "cluster={device: h100, devices_per_node: 2}"],
            r"no room for llama-3-70b, which drafts \(70\.6 GB .* \(2 x h100\); use more devices",
        ),
        (
            [
                "model=llama-3.1-8b",
                "cluster={device: h100, pools: {prefill: {devices_per_node: 1}, decode: {devices_per_node: 1}}}",
            ],
            r"cannot draft on the devices of llama-3\.1-8b: llama-3-70b does not fit: .*; use more devices",
        ),
    ],
)
def test_a_draft_model_without_room_is_named_with_a_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        prepare(load_scenario(None, [BIG, *overrides]))
    assert refused.value.where == "scheduler.speculative.model"


def test_a_layer_that_drafts_without_room_is_named_with_a_remedy() -> None:
    cluster = "cluster={device: h200, nodes: 1, devices_per_node: 8, tensor_parallel: 8}"
    with pytest.raises(InputError, match=r"no room for deepseek-v3 mtp, .*; use more devices") as refused:
        prepare(load_scenario(None, ["model=deepseek-v3", cluster, MTP, "scheduler.memory_utilization=0.57"]))
    assert refused.value.where == "scheduler.speculative"


def test_a_target_without_room_is_told_as_without_drafts() -> None:
    with pytest.raises(InputError, match="does not fit") as refused:
        prepare(load_scenario(None, [BIG, "model=llama-3-70b", "cluster={device: h100, devices_per_node: 1}"]))
    assert refused.value.where == "cluster"


def decode_step_fs(overrides: list[str], drafts: int, requests: int = 1, context: int = 4000) -> int:
    if drafts:
        text = f"method: ngram, num_speculative_tokens: {drafts}, acceptance: 0.6"
        overrides = [*overrides, f"scheduler.speculative={{{text}}}"]
    (pool,) = prepare(load_scenario(None, overrides)).pools
    return evaluate(pool.plan, shape_of(pool.plan, requests, context)).duration_fs


DENSE = ["model=llama-3.1-8b", "cluster.device=h100", "cluster.devices_per_node=1"]


def test_a_wider_step_costs_a_little_more_for_each_draft() -> None:
    """Affine in the drafts while weights bind, as the one published line is: 29.44 ms + 0.465 ms x (k + 1)."""
    times = [decode_step_fs(DENSE, drafts) for drafts in (1, 2, 3, 4)]
    more = np.diff(times)
    assert (more > 0).all()
    assert max(more) - min(more) <= 1e-6 * times[0]
    assert more[0] < 0.02 * times[0]  # 1.6 % there


def test_kv_cache_and_weights_are_read_once_for_all_drafts() -> None:
    contexts = [decode_step_fs(DENSE, drafts, 16, 800_000) - decode_step_fs(DENSE, drafts, 16, 16) for drafts in (0, 3)]
    assert contexts[0] == contexts[1]  # grouped-query attention on a GPU is bound by memory with 4 queries, too


def test_windows_bound_what_drafts_attend_to() -> None:
    """Beyond 128 tokens half of the layers of gpt-oss read no more of the KV cache, however many drafts look at it."""
    model = ["model=gpt-oss-120b", "cluster.device=h100", "cluster.devices_per_node=1"]
    for drafts in (0, 3):
        times = [decode_step_fs(model, drafts, 16, 16 * context) for context in (0, 128, 256, 384)]
        first, second, third = np.diff(times).tolist()
        assert second == third == pytest.approx(first / 2, rel=0.01)
    (pool,) = prepare(load_scenario(None, [*model, MTP])).pools
    assert (pool.kv_groups.full, pool.kv_groups.windowed) == (1, 1)
    assert pool.draft_kv_bytes_per_token == pool.kv_bytes_per_token / 19  # 18 layers see all, and the one that drafts


def test_drafts_take_their_own_time() -> None:
    def plan_fs(more: str) -> int:
        spec = f"scheduler.speculative={{num_speculative_tokens: 3, acceptance: 0.6, {more}}}"
        (pool,) = prepare(load_scenario(None, [*DENSE, spec])).pools
        return evaluate(pool.plan, shape_of(pool.plan, 8, 8000)).duration_fs

    free, plain = plan_fs("method: ngram"), decode_step_fs(DENSE, 0, 8, 8000)
    share = plan_fs("method: draft_model, draft_time_share: 0.1")
    assert share - free == pytest.approx(0.3 * plain, rel=1e-6)
    layer_and_head = (plan_fs("method: mtp") - free) / 3
    # One of 32 layers, and a head of 0.525 of 7.5 G weights that are read.
    assert layer_and_head / plain == pytest.approx((7.5 - 0.525) / 7.5 / 32 + 0.525 / 7.5, rel=0.05)


def test_experts_of_a_layer_that_drafts_see_the_tokens_of_all_groups() -> None:
    """They take the same for as many tokens, whether these are of one group or of four."""

    def experts(tensor: int) -> dict[str, list[int]]:
        overrides = ["cluster.device=h100", "cluster.experts=ep", f"cluster.tensor_parallel={tensor}", MTP]
        (pool,) = prepare(load_scenario(None, overrides)).pools
        terms = [term for term in pool.plan.rows if term.name == "draft: routed experts"]
        assert set(terms) == set(pool.plan.shared_rows) or tensor == 4
        return {term.rows: [term.time_fs(rows) for rows in (1, 7, 64, 512)] for term in terms}

    together, apart = experts(4), experts(1)
    assert apart == {"all_tokens": together["tokens"], "all_decodes": together["decodes"]}
    assert apart["all_decodes"] == [2 * time for time in apart["all_tokens"]]  # the second and the third draft


def test_the_draft_model_takes_memory() -> None:
    def tokens(more: str) -> tuple[int, int]:
        spec = f"scheduler.speculative={{num_speculative_tokens: 3, acceptance: 0.6, {more}}}"
        (pool,) = prepare(load_scenario(None, [*DENSE, spec])).pools
        return pool.kv_capacity_tokens, pool.kv_bytes_per_token

    found = map(tokens, ("method: ngram", "method: mtp", "method: draft_model, model: llama-3.1-8b"))
    (none, mtp, model), of_one = zip(*found, strict=True)
    assert of_one == (131_072, 131_072 * 33 // 32, 2 * 131_072)
    assert mtp < none * 32 / 33
    assert mtp > none * 32 / 33 - 5000  # 0.44 GB of weights
    weights = 16.06e9 / 131072  # in tokens of KV cache
    assert model == pytest.approx((none - weights) / 2, rel=0.01)


def test_what_is_handed_over_holds_the_cache_of_the_model_that_drafts() -> None:
    def link_of(more: str) -> Link:
        spec = f"scheduler.speculative={{num_speculative_tokens: 3, acceptance: 0.6, {more}}}"
        pools = "cluster.pools={prefill: {}, decode: {device: duplex}, handover: {overlap: layers}}"
        link = prepare(load_scenario(None, [*DENSE, spec, pools])).link
        assert link is not None
        return link

    found = map(link_of, ("method: ngram", "method: mtp", "method: draft_model, model: llama-3.1-8b"))
    of_token = 131_072
    assert [(link.bytes_per_token, link.layers) for link in found] == [
        (of_token, 32),
        (of_token * 33 // 32, 33),
        (2 * of_token, 64),
    ]


def test_what_is_told_of_drafts() -> None:
    """Every output token is a first one, a step's own one, or an accepted draft."""
    served = run(["workload.num_requests=80", MTP])
    told = summarize(served, Objectives(), Hardware(1)).spec_decode
    assert told is not None
    (log,) = served.logs
    completed = 80 + int(served.table["preemptions"].sum())
    assert told.accepted_tokens + told.drafts + completed == log.tokens == served.table["output_tokens"].sum()
    assert told.drafts == log.itl.count  # a gap between tokens for each request in each step
    assert told.draft_tokens == 3 * told.drafts
    length = told.mean_acceptance_length
    assert length is not None
    expected = SpeculativeSpec.model_validate({"method": "mtp", "num_speculative_tokens": 3, "acceptance": 0.6})
    # The last step of a request emits no more than is left: a little less than the law says.
    assert expected.expected_tokens - 0.05 < length < expected.expected_tokens + 0.01


def test_without_drafts_nothing_is_told_of_any() -> None:
    served = run(["workload.num_requests=3"])
    assert "spec_decode" not in summarize(served, Objectives(), Hardware(1)).document()


def test_no_draft_accepted_is_one_token_a_step() -> None:
    """The steps of a run without drafts, each of which takes longer."""
    overrides = ["workload.num_requests=1", "workload.arrival.rate_per_s=1000"]
    never = ["scheduler.speculative={method: ngram, num_speculative_tokens: 3, acceptance: 0}"]
    plain, wide = run(overrides), run([*overrides, *never])
    assert wide.logs[0].steps == plain.logs[0].steps
    assert wide.logs[0].tokens == plain.logs[0].tokens
    assert wide.logs[0].busy_fs > plain.logs[0].busy_fs


CACHED = [
    "scheduler.enable_prefix_caching=true",
    "workload.prefix={groups: 3, shared_tokens: 300}",
    "scheduler.speculative.method=mtp",
]


FAIR = ["scheduler.policy=vtc", "workload.classes=[{name: chat, share: 2}, {name: batch, share: 1}]"]
IN_GROUPS = ["cluster.tensor_parallel=2", "scheduler.kv_blocks=140"]


@examples(12)
@given(
    LENGTHS,
    st.integers(0, 500),
    st.sampled_from(["round_robin", "least_outstanding", "least_tokens"]),
    st.sampled_from([[], CACHED, IN_GROUPS, CACHED + IN_GROUPS, FAIR]),
)
def test_windows_interruptions_and_faults_do_not_matter(
    lengths: list[int], at: int, router: str, more: list[str]
) -> None:
    """Cut anywhere, and continued from anywhere, with preemptions and a replica that fails, the bits are the same."""
    overrides = [
        *(
            "workload.num_requests=28",
            "workload.arrival.rate_per_s=400",
            "cluster.replicas=2",
            "scheduler.kv_blocks=160",
        ),
        *(f"scheduler.router={router}", "faults.events=[{at_s: 0.4, replica: 1, kind: fail, for_s: 0.2}]"),
        "scheduler.speculative={method: ngram, num_speculative_tokens: 4, acceptance: 0.7}",
        "scheduler.max_model_len=2048",
        *more,
    ]
    whole, kept = run(overrides), Kept()
    cut = run(overrides, Deployment(control=Windows(lengths), checkpoints=kept))
    assert told_of(cut) == told_of(whole)
    kept.first = at
    continued = run(overrides, Deployment(control=Windows([10**15]), checkpoints=kept))
    assert told_of(continued) == told_of(whole)
    table, served = whole.table, whole.table["reject_reason"] == SERVABLE
    assert table["preemptions"].sum() > 0
    assert table["emitted_tokens"][served].tolist() == table["output_tokens"][served].tolist()


def told_of(served: Served) -> tuple[object, ...]:
    return digest(served), served.spec_decode, served.prefixes


def run(overrides: list[str], deployment: Deployment = Deployment()) -> Served:  # noqa: B008 frozen
    prepared = prepared_of(tuple(overrides))
    scenario = prepared.scenario
    workload = generate(scenario.workload, scenario.run.seed)
    return simulate(
        prepared.pools,
        workload,
        scenario.scheduler,
        max_model_len=prepared.max_model_len,
        routing=prepared.routing,
        seed=scenario.run.seed,
        faults=prepared.faults,
        deployment=deployment,
    )


@cache
def prepared_of(overrides: tuple[str, ...]) -> Prepared:
    return prepare(load_scenario(None, list(overrides)))
