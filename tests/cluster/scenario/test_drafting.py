"""What drafts cost and take of the memory, and what is refused where they have no room."""

import numpy as np
import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.errors import InputError
from pimserve.scheduler.handover import Link

MTP = "scheduler.speculative={method: mtp, num_speculative_tokens: 3, acceptance: 0.6}"
TINY = "model={preset: llama-3.1-8b, layers: 1, vocab: 64, hidden: 512, ffn: {intermediate: 512}}"


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
