"""Speculative decoding: what is expected of a step, what is drawn, and what is told of it."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.kv_groups import NO_WINDOWS
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.workload import generate
from pimserve.scheduler.acceptance import STEPS, Acceptance
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
from .test_windows import LENGTHS, cut_and_continued


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


MTP = "scheduler.speculative={method: mtp, num_speculative_tokens: 3, acceptance: 0.6}"


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


@pytest.mark.medium
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
    whole = run(overrides)
    for other in cut_and_continued(lambda deployment: run(overrides, deployment), lengths, at):
        assert told_of(other) == told_of(whole)
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
