"""The event-driven model against the reference simulator, against hand derivations, and against what always holds."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given

from pimserve.cluster.validation.aimc_case import Case
from pimserve.cluster.validation.validate_aimc import published_cases, run_case
from pimserve.device_models.aimc.chip import Link
from pimserve.device_models.aimc.event.graph import COMPAT, Sequence
from pimserve.device_models.aimc.event.simulate import Outcome, simulate
from pimserve.device_models.aimc.network import gpt2_like, network_of
from pimserve.errors import InputError
from tests.device_models.aimc.strategies import DRAM, MLA, Run, chip_of, compat_runs, model, physical_runs, spread
from tests.examples import examples

NS = 1000
CASES = [*(f"open-{number:02}" for number in range(1, 19)), "paper-scale"]


@cache
def case_of(prefix: str) -> Case:
    (found,) = [case for case in published_cases() if case.id.startswith(prefix)]
    return found


@cache
def outcome_of(prefix: str) -> Outcome:
    return run_case(case_of(prefix))


@pytest.mark.medium
@pytest.mark.parametrize("prefix", CASES)
def test_the_reference_simulators_figures_are_met_exactly(prefix):
    result, ours = case_of(prefix).form.result, outcome_of(prefix)
    assert ours.makespan_ps == result.latency_ns * NS
    theirs = [[ns * NS for ns in times] for times in result.token_finish_ns.values()]
    assert [list(times) for times in ours.token_finish_ps] == theirs
    counts = result.op_counts
    assert ours.op_counts == {
        "mvm": counts.tier_linear,
        "hop": counts.communication,
        "link": 0,
        "add": counts.digital_add,
        "activation": counts.digital_relu + counts.digital_gelu,
        "norm": counts.layer_norm,
        "sampler": counts.multinomial,
        "attention": counts.mha,
        "kv_write": 0,
    }
    assert ours.flops == result.flops
    if result.peak_memory_bytes is not None:
        assert ours.peak_memory_bytes == result.peak_memory_bytes


@pytest.mark.parametrize("prefix", CASES)
def test_energies_and_busy_times_of_the_reference_simulator_are_met(prefix):
    case, ours = case_of(prefix), outcome_of(prefix)
    energy, spent = case.form.result.energy_breakdown_nJ, ours.energy_nj
    expected = {
        "mvm": energy.tier_linear,
        "hop": energy.communication,
        "link": 0,
        "add": energy.digital_add,
        "activation": energy.digital_relu + energy.digital_gelu,
        "norm": energy.layer_norm,
        "sampler": energy.multinomial,
        "attention": energy.mha.comp,
        "attention_dram": energy.mha.dram,
        "kv_write": 0,
        "passive": energy.passive,
    }
    assert spent == pytest.approx(expected, rel=1e-9)
    assert ours.total_energy_nj == pytest.approx(case.form.result.energy_nJ, rel=1e-9)
    times, busy = case.form.result.op_latency_sums_ns, ours.op_latency_ps
    assert busy["mvm"] == times.tier_linear * NS
    assert busy["attention"] == times.mha.comp * NS
    assert busy["attention_dram"] == times.mha.dram * NS
    assert busy["add"] == times.digital_add * NS
    assert list(ours.mvms_per_tile) == case.form.derived.mvms_per_tile
    attending = (times.mha.comp + times.mha.dram) / (case.form.result.latency_ns * case.chip.attention_units)
    assert ours.busy.attention == pytest.approx(attending)
    assert ours.busy.busiest_tile == max(ours.mvms_per_tile) * case.chip.mvm.ps / ours.makespan_ps


# The shipped placeholder costs, ns.
HOP, ADD, NORM, RELU, ATTENTION, SAMPLER, MVM = 10, 10, 50, 1, 2, 10, 100
LINEAR = HOP + MVM + HOP
CHAIN = (
    (MVM + HOP + ADD)
    + LINEAR
    + ATTENTION
    + (LINEAR + ADD + NORM)
    + (LINEAR + RELU + LINEAR + ADD)
    + (NORM + LINEAR + SAMPLER)
)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("open-01", CHAIN),
        ("open-02", CHAIN + 2 * MVM),  # q, k, v in turn on the only tile
        ("open-03", CHAIN + ADD),  # the two experts' sum
        ("open-04", CHAIN + 2 * 3 * MVM),  # four tokens queue at the embedding, and again after attention
        ("open-05", CHAIN + 2 * MVM),  # three sequences queue once
        # Six matrices in a row with row blocks: 1 sum each but 5 for the last, a hop more before the sampler; and six
        # columns on four digital units take two rounds, twice.
        ("open-06", CHAIN + 4 * ADD + 5 * ADD + HOP + 2 * ADD),
    ],
)
def test_hand_derivations(prefix, expected):
    assert outcome_of(prefix).makespan_ps == expected * NS


def test_hand_derivation_of_energy():
    mvms, hops, norms, adds = 8, 15, 2, 3
    active = mvms * 10 + hops * 512 * 8e-5 + (1 + 1) + norms * 10 + 10 + adds * 10
    assert outcome_of("open-01").total_energy_nj == pytest.approx(active + 5 * CHAIN, rel=1e-12)


ONE_TOKEN = Sequence(1, 1)


def physical_ns(network, chip=None, sequence=ONE_TOKEN, **given):
    chip = chip_of() if chip is None else chip
    return simulate(network, chip, spread(network, chip), [sequence], **given).makespan_ps / NS


# The rates of `strategies.RATES`, all vectors of 8 elements.
HOP8, ADD8, NORM8, SILU16, PRODUCT16 = 13, 10, 10, 18, 18
LINEAR8 = HOP8 + 100 + HOP8
GATED = LINEAR8 + SILU16 + PRODUCT16 + LINEAR8 + ADD8  # two column blocks up, two row blocks down
HEAD = NORM8 + LINEAR8 + ADD8
FIRST = 100 + HOP8 + NORM8 + LINEAR8
AFTER = LINEAR8 + ADD8 + NORM8
# 4 x 4 heads x 2 FLOP per pair at 10 FLOP/ns; the cache has 8 bytes a token at 2 bytes/ns.
ATTENTION1 = 3.2


def test_hand_derivation_of_a_gated_layer():
    # The position of this model costs nothing, and its 8 keys and values per token are written on the side.
    expected = FIRST + ATTENTION1 + AFTER + GATED + ADD8 + HEAD
    assert physical_ns(network_of(model())) == pytest.approx(expected)


def test_a_position_table_is_read_and_added():
    plain, learned = (physical_ns(network_of(model(learned_positions=rows))) for rows in (0, 64))
    assert learned == plain + ADD8


def test_hand_derivation_of_experts_behind_their_router():
    moe = {"experts": 4, "top_k": 2, "intermediate": 16, "shared_intermediate": 16}
    router = HOP8 + 100 + (5 + 4) + (2 + 4)  # four results back, and the gate over them
    experts = router + GATED + ADD8  # shared expert in the shadow; the sum of the two chosen
    expected = FIRST + ATTENTION1 + AFTER + experts + ADD8 + ADD8 + HEAD
    assert physical_ns(network_of(model(moe=moe))) == pytest.approx(expected)


def test_a_cache_read_overlaps_its_computation():
    # 100 tokens: 8 bytes each at 2 bytes/ns, 400 ns; computation takes 320. This token's own 8 bytes are written while
    # its query, which is longer than key and value, is still on its way.
    alone = FIRST + AFTER + GATED + ADD8 + HEAD
    fast = chip_of(dram=DRAM.model_copy(update={"gb_per_s": 1000.0}))
    network = network_of(model())
    decode = Sequence(1, 1, 99)
    assert physical_ns(network, sequence=decode) == pytest.approx(alone + 400)
    assert physical_ns(network, fast, decode) == pytest.approx(alone + 320)


def test_reads_of_several_sequences_share_one_memory():
    network, chip = network_of(model()), chip_of()
    sequences = [Sequence(1, 1, 99)] * 4
    together = simulate(network, chip, spread(network, chip), sequences)
    read, written = together.op_latency_ps["attention_dram"], together.op_latency_ps["kv_write"]
    assert (read, written) == (4 * 400 * NS, 4 * 4 * NS)
    lone = physical_ns(network, sequence=sequences[0]) * NS
    assert together.makespan_ps >= lone + 3 * (400 + 4) * NS - 3 * 100 * NS


def test_attention_split_by_heads_divides_computation():
    fast = DRAM.model_copy(update={"gb_per_s": 1e6})
    network, decode = network_of(model()), Sequence(1, 1, 99)
    whole = physical_ns(network, chip_of(dram=fast), decode)
    split = physical_ns(network, chip_of(dram=fast, attention_split="heads"), decode)
    assert whole - split == pytest.approx(320 - 320 / 2)  # four units, but two heads to share out


def test_transfers_to_another_chip_cost_its_link_on_top():
    network = network_of(model())
    one = chip_of()
    two = chip_of(tiles=200, chips=2, link=Link(1.0, 8.0, 2.0))
    away = [index for index, matrix in enumerate(network.matrices) if matrix.name == "lm_head"]
    mapping = spread(network, one)
    tiles = tuple((200,) * len(t) if index in away else t for index, t in enumerate(mapping.tiles))
    outcome = simulate(network, two, type(mapping)(tiles, mapping.tiers, mapping.fill), [Sequence(1, 1)])
    assert outcome.op_counts["link"] == 1  # the last norm's result; the sampler is where the logits are
    assert outcome.makespan_ps / NS == pytest.approx(physical_ns(network) + 1000 + 1)
    assert outcome.energy_nj["link"] == pytest.approx(0.5 + 0.08 + 8 * 8 * 2e-3)


def test_attention_is_where_its_result_is_taken():
    """Residual and attention lie with the first matrix after attention; the one after it is on another chip here."""
    network, one = network_of(model(MLA)), chip_of()
    (away,) = [index for index, matrix in enumerate(network.matrices) if matrix.name.endswith("out_proj")]
    two = chip_of(tiles=200, chips=2, link=Link(1.0, 8.0, 2.0))
    mapping = spread(network, one)
    tiles = tuple((200,) * len(t) if index == away else t for index, t in enumerate(mapping.tiles))
    outcome = simulate(network, two, type(mapping)(tiles, mapping.tiers, mapping.fill), [Sequence(1, 1)])
    assert outcome.op_counts["link"] == 2  # there and back


def test_a_matrix_with_an_input_per_head_is_read_once_per_head():
    shape = {
        "kind": "mla",
        "heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 4,
    }
    network, chip = network_of(model(shape)), chip_of()
    outcome = simulate(network, chip, spread(network, chip), [Sequence(1, 1)])
    tiles = spread(network, chip).tiles
    by_name = {matrix.name: outcome.mvms_per_tile[t[0]] for matrix, t in zip(network.matrices, tiles, strict=True)}
    assert by_name["layers.0.k_up"] == by_name["layers.0.v_up"] == 2
    assert by_name["layers.0.q_up"] == 1


def test_sums_beside_the_tiles_do_not_wait_for_digital_units():
    network = gpt2_like(hidden=32, heads=1, ffn_width=32, layers=1, vocab=8, positions=8)
    pooled, beside = (physical_ns(network, chip_of(digital_units=1, partial_sums=where)) for where in ("pool", "tile"))
    assert beside < pooled
    wide = chip_of(digital_units=1000)
    assert physical_ns(network, wide) == beside


def test_only_the_last_prompt_token_passes_the_last_layer():
    network, chip = network_of(model(layers=2)), chip_of()
    outcomes = {tokens: simulate(network, chip, spread(network, chip), [Sequence(tokens, 1)]) for tokens in (1, 5)}
    more = outcomes[5].op_counts["mvm"] - outcomes[1].op_counts["mvm"]
    per_layer = {"before": 3, "after": 1 + 2 + 2 + 2}
    assert more == 4 * (1 + per_layer["before"] + per_layer["after"] + per_layer["before"])


def test_without_transfers_there_are_none():
    network, chip = gpt2_like(hidden=16, heads=1, ffn_width=16, layers=1, vocab=8, positions=8), chip_of()
    outcome = simulate(network, chip, spread(network, chip), [Sequence(1, 2)], communication=False)
    assert outcome.op_counts["hop"] == 0 < outcome.op_counts["mvm"]


def test_without_a_cache_all_tokens_are_computed_again():
    network, chip = gpt2_like(hidden=8, heads=1, ffn_width=8, layers=1, vocab=8, positions=8), chip_of()
    cached, again = (
        simulate(network, chip, spread(network, chip), [Sequence(2, 3)], rules=COMPAT, kv_caching=on).op_counts["mvm"]
        for on in (True, False)
    )
    per_token = 1 + 3 + 1 + 2
    assert cached == (2 + 1 + 1) * per_token + 3
    assert again == (2 + 3 + 4) * per_token + 3


def bounds_of(outcome: Outcome, run: Run) -> list[float]:
    """Critical path, and the work of each resource over its servers, ps."""
    graph, lines = outcome.graph, outcome.graph.table.operations
    path = [0] * len(graph.operation)
    after: list[list[int]] = [[] for _ in path]
    for source, target in zip(graph.src, graph.dst, strict=True):
        after[target].append(source)
    work = [0.0] * (graph.resources.dram + run.chip.chips)
    for task, number in enumerate(graph.operation):
        line = lines[number]
        overlaps = line.kind == "attention" and run.rules.dram_contention
        ps = max(line.ps, line.dram_ps) if overlaps else line.ps + line.dram_ps
        path[task] = ps + max((path[before] for before in after[task]), default=0)
        if graph.resource[task] >= 0:
            work[graph.resource[task]] += ps
    chips, resources = run.chip.chips, graph.resources
    attention_units = 1 if run.chip.attention_split == "heads" else run.chip.attention_units
    servers = [1] * resources.tiles + [run.chip.digital_units] * chips + [attention_units] * chips + [1] * chips
    return [max(path), *(w / n for w, n in zip(work, servers, strict=True))]


@examples(60)
@given(compat_runs() | physical_runs())
def test_laws_of_every_run(run):
    outcome = run.outcome()
    graph, lines = outcome.graph, outcome.graph.table.operations
    start, finish = outcome.start_ps, outcome.finish_ps
    # Every task runs, after all that it waits for.
    assert (finish >= start).all()
    assert (start[np.array(graph.dst)] >= finish[np.array(graph.src)]).all()
    assert outcome.makespan_ps == finish.max() >= max(bounds_of(outcome, run))
    # No tile does two things at once, no pool more than it has units.
    resource = np.array(graph.resource)
    units = run.chip.attention_units if run.chip.attention_split == "sequence" else 1
    chips = run.chip.chips
    servers = [1] * graph.resources.tiles + [run.chip.digital_units] * chips + [units] * chips
    for place, count in enumerate(servers):
        mine = resource == place
        assert most_at_once(start[mine], finish[mine]) <= count
    # Energy is that of the table's operations, and nothing is lost between kinds.
    spent = sum(lines[number].nj + lines[number].dram_nj for number in graph.operation)
    passive = run.chip.passive_w * chips * outcome.makespan_ps / NS
    assert outcome.total_energy_nj == pytest.approx(spent + passive)
    assert sum(outcome.mvms_per_tile) == outcome.op_counts["mvm"]
    assert [len(times) for times in outcome.token_finish_ps] == [sequence.generate for sequence in run.sequences]
    for times in outcome.token_finish_ps:
        assert list(times) == sorted(set(times))


def most_at_once(start, finish):
    busy = start < finish
    change = np.concatenate([np.ones(busy.sum()), -np.ones(busy.sum())])
    order = np.lexsort((change, np.concatenate([start[busy], finish[busy]])))
    return max(np.cumsum(change[order]), default=0)


@examples(20)
@given(compat_runs() | physical_runs())
def test_the_same_run_twice_gives_the_same(run):
    first, second = run.outcome(), run.outcome()
    assert (first.finish_ps == second.finish_ps).all()
    assert (first.energy_nj, first.token_finish_ps) == (second.energy_nj, second.token_finish_ps)


def test_the_seed_moves_what_is_drawn():
    moe = {"experts": 8, "top_k": 1, "intermediate": 16}
    network, chip = network_of(model(moe=moe, vocab=64)), chip_of()
    mapping = spread(network, chip)
    used = {simulate(network, chip, mapping, [Sequence(2, 2)], seed=seed).mvms_per_tile for seed in range(4)}
    assert len(used) == 4


def test_experts_follow_their_popularity():
    moe = {"experts": 4, "top_k": 1, "intermediate": 8, "matrices": 2}
    network, chip = network_of(model(moe=moe)), chip_of()
    mapping = spread(network, chip)
    weights = [0.0, 1.0, 3.0, 0.0]
    outcome = simulate(network, chip, mapping, [Sequence(1, 1)] * 400, popularity=weights)
    picks = [outcome.mvms_per_tile[mapping.tiles[ffn.down][0]] for (ffn,) in network.blocks[0].experts]
    assert picks[0] == picks[3] == 0
    assert picks[1] + picks[2] == 400
    assert picks[2] == pytest.approx(300, abs=5 * (400 * 0.75 * 0.25) ** 0.5)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"sequences": []}, "sequences: must have at least one entry"),
        ({"popularity": [1.0] * 3}, "popularity: must hold 4 weights"),
        ({"popularity": [1.0, -1.0, 1.0, 1.0]}, "popularity: must hold 4 weights"),
        ({"popularity": [1.0, 0.0, 0.0, 0.0]}, "at least 2 above 0"),
        ({"sequences": [Sequence(1, 2, 15)]}, "must not exceed the model's 16 positions"),
        ({"chip": chip_of(tiles=4, chips=2)}, "link: must be given"),
    ],
)
def test_what_is_wrong_is_said(given_, message):
    moe = {"experts": 4, "top_k": 2, "intermediate": 8}
    network = network_of(model(moe=moe, learned_positions=16))
    chip = given_.pop("chip", chip_of())
    sequences = given_.pop("sequences", [Sequence(1, 1)])
    with pytest.raises(InputError, match=message):
        simulate(network, chip, spread(network, chip), sequences, **given_)
