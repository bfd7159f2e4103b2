"""Drafts where routed experts have devices of their own: where these are made, and that all tokens are counted."""

import pytest

from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.evaluate import shape_of
from pimserve.device_models.model import ModelSpec
from pimserve.scheduler.mixed_costs import MixedCosts

DRAFTS = 2
WIDTH = DRAFTS + 1
MIXED = [
    "cluster.devices_per_node=2",
    "cluster.placement={experts: {device: h100, devices_per_node: 2}, micro_batches: 2}",
    "workload.num_requests=30",
]


def drafting(method: str = "mtp", **more: str) -> str:
    changes = "".join(f", {key}: {value}" for key, value in more.items())
    return f"scheduler.speculative={{method: {method}, num_speculative_tokens: {DRAFTS}, acceptance: 0.7{changes}}}"


def prepared(*overrides: str) -> Prepared:
    return prepare(load_scenario(None, [*MIXED, *overrides]))


def layer_bytes(model: ModelSpec) -> float:
    """Of a layer with all of its experts, in bf16."""
    return 2.0 * (model.parameters - 2 * model.vocab * model.hidden) / model.layers


def test_with_experts_beside_attention_drafts_run_as_without_a_placement() -> None:
    plain, same = (
        serve(prepare(load_scenario(None, ["workload.num_requests=40", drafting(), *more])))[0]
        for more in ([], ["cluster.placement={experts: attention, micro_batches: 1}"])
    )
    assert same.digest == plain.digest
    assert same.spec_decode == plain.spec_decode


@pytest.mark.parametrize("head", ["attention", "experts"])
def test_what_drafts_is_on_devices_of_attention_with_its_experts(head: str) -> None:
    there = f"cluster.placement.lm_head={head}"
    plain, drafts = (prepared(there, *more) for more in ([], [drafting()]))
    (attention, experts), (before, same) = drafts.pools[0].groups, plain.pools[0].groups
    assert experts.replica.weight_bytes_per_device == same.replica.weight_bytes_per_device
    more = attention.replica.weight_bytes_per_device - before.replica.weight_bytes_per_device
    wanted = layer_bytes(drafts.model)
    if head == "experts":  # it drafts with a head of its own
        wanted += 2.0 * drafts.model.vocab * drafts.model.hidden
    assert 2 * more == pytest.approx(wanted, rel=0.01)
    layers = drafts.model.layers
    assert attention.kv_capacity_tokens < before.kv_capacity_tokens * layers / (layers + 1)
    assert drafts.pools[0].draft_layers == 1
    assert drafts.pools[0].kv_capacity_tokens == attention.kv_capacity_tokens


def test_a_micro_batch_drafts_when_it_has_come_back_from_its_last_layer() -> None:
    micro = prepared(drafting())
    plan = micro.pools[0].plan
    terms = [term for term in plan.rows if term.name.startswith("draft: ")]
    assert "draft: routed experts" in {term.name for term in terms}
    assert {(term.stage, term.runs) for term in terms} == {("attention", "last")}
    shape = shape_of(plan, 8, 8 * 500)
    found = []
    for each in (micro, prepared(drafting("ngram"))):
        costs = each.pools[0].costs(each.routing, 0)
        assert isinstance(costs, MixedCosts)
        found.append(costs.parts_of_step(shape, 0)[1])
    counts = {"tokens": WIDTH * 4, "decodes": 4}  # of each of two micro-batches
    for part, without in zip(*found, strict=True):
        more = sum(term.time_fs(counts[term.rows]) for term in terms if term.rows in counts)
        assert part.closing - without.closing == more > 0
        assert part.dispatch == without.dispatch
        assert part.combine == without.combine
        assert part.experts == without.experts


def test_more_tokens_pass_and_no_more_requests() -> None:
    """Dispatch and experts see each draft; attention reads the cache once for all of a request."""
    plain, wide = (prepared(*more) for more in ([], [drafting("ngram")]))
    parts = []
    for each, requests in ((plain, 8 * WIDTH), (wide, 8)):
        costs = each.pools[0].costs(each.routing, 0)
        assert isinstance(costs, MixedCosts)
        parts.append(costs.parts_of_step(shape_of(each.pools[0].plan, requests, requests * 100), 3)[1])
    for one, other in zip(*parts, strict=True):
        assert one.dispatch == other.dispatch
        assert one.combine == other.combine
        assert one.experts == other.experts


@pytest.mark.parametrize("head", ["attention", "experts"])
def test_every_token_is_counted_on_the_link(head: str) -> None:
    found = prepared(drafting(), f"cluster.placement.lm_head={head}")
    summary, served = serve(found)
    (log,) = served.logs
    told = summary.spec_decode
    assert told is not None
    decodes = told.drafts
    prompts = log.batch_steps - decodes  # chunks, of which each has a row for the vocabulary
    assert log.computed_tokens == WIDTH * decodes + log.prompt_tokens
    assert log.sampled_rows == WIDTH * decodes + prompts
    link = summary.document()["groups"]["link"]
    for direction in ("dispatch", "combine"):
        vectors = link["copies_per_token"] * found.model.moe_layers * log.computed_tokens
        if head == "experts" and direction == "dispatch":
            vectors += 2 * log.sampled_rows  # to both devices, which have half of the head each
        assert link[direction]["tokens"] == pytest.approx(vectors, rel=1e-9)


def test_steps_are_cut_by_their_tokens() -> None:
    chips = "cluster.placement={experts: {device: {preset: aimc-realistic, spread: experts}}}"
    found = prepared(chips, drafting("ngram"))
    micro = found.pools[0].plan.micro_batches
    assert micro is not None
    tried = found.pools[0].replica.facts["placement"]["micro_batches_auto"]["step_s"]
    sizes = {WIDTH * int(requests) for requests in tried}
    assert micro.parts > 1
    assert {tokens for tokens, _ in micro.cuts} <= {1, *sizes}


@pytest.mark.parametrize(("method", "told"), [("mtp", True), ("ngram", False)])
def test_it_is_told_where_what_drafts_is(method: str, told: bool) -> None:
    summary, _ = serve(prepared("workload.num_requests=4", drafting(method)))
    assert any("on attention's devices as a whole" in each for each in summary.warnings) == told


@pytest.mark.medium
def test_experts_of_any_kind_take_drafts() -> None:
    """Crossbars, and hot experts on another kind of devices: they take tokens, whoever these are of."""
    chips = "{preset: aimc-realistic, spread: experts}"
    for placement in (
        f"{{experts: {{device: {chips}}}}}",
        f"{{experts: {{device: {chips}}}, hot_experts: {{device: h100, devices_per_node: 1, count: 2}}}}",
    ):
        overrides = [f"cluster.placement={placement}", "routing={popularity: zipf, zipf_exponent: 1.0}", drafting()]
        served = serve(prepared(*overrides, "workload.num_requests=8"))[1]
        assert served.table["emitted_tokens"].tolist() == served.table["output_tokens"].tolist()
