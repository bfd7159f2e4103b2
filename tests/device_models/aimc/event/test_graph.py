"""The task graph: how many tasks there are, and what waits for what."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from pimserve.device_models.aimc.event.graph import COMPAT, PHYSICAL, Sequence
from pimserve.device_models.aimc.event.simulate import simulate
from pimserve.device_models.aimc.network import gpt2_like, network_of
from pimserve.errors import InputError
from tests.device_models.aimc.strategies import Run, chip_of, compat_runs, model, spread
from tests.examples import examples


@examples(60)
@given(compat_runs())
def test_counts_of_the_reference_simulator(run: Run):
    """Section 2 of the facts in closed form: MVMs, transfers and digital operations of equal sequences with a cache."""
    network, chip = run.network, run.chip
    rows, cols = chip.tier_rows, chip.tier_cols

    def grid(matrix: int) -> tuple[int, int]:
        return network.matrices[matrix].grid(rows, cols)

    tokens = run.sequences[0].prompt + run.sequences[0].generate - 1
    generated = run.sequences[0].generate
    passed: Counter[int] = Counter()  # matrices that one token passes, with the number of times
    norms, adds, activations = int(network.norm_first), 1, 0
    for layer, block in enumerate(network.blocks):
        passed.update(matrix for stage in (*block.before, *block.after) for matrix in stage)
        used = [block.dense] if block.dense else [*block.experts[0]] * block.top_k
        passed.update(matrix for ffn in used for matrix in (*ffn.up, ffn.down))
        if block.router is not None:
            passed[block.router] += 1
        norms += 1 + (layer < len(network.blocks) - 1)
        adds += 2 + len(used) - 1
        activations += len(used)
    embedding = grid(network.token_embedding)[1]
    head_rows, head_cols = grid(network.head)
    mvms = tokens * (embedding + sum(n * grid(m)[0] * grid(m)[1] for m, n in passed.items()))
    mvms += generated * head_rows * head_cols
    adds = tokens * (adds + sum(n * (grid(m)[0] - 1) * grid(m)[1] for m, n in passed.items()))
    adds += generated * (head_rows - 1) * head_cols
    hops = 2 * mvms - run.sequences[0].prompt * embedding + generated
    hops -= generated * head_cols if head_rows == 1 else 0
    expected = {
        "mvm": mvms,
        "hop": hops,
        "link": 0,
        "add": adds,
        "activation": tokens * activations,
        "norm": tokens * norms + generated,
        "sampler": generated,
        "attention": generated * len(network.blocks),
        "kv_write": 0,
    }
    ours = run.outcome().op_counts
    assert ours == {kind: len(run.sequences) * count for kind, count in expected.items()}


@pytest.mark.parametrize("name", ["prompt", "generate", "context"])
def test_a_sequence_has_no_negative_length(name):
    with pytest.raises(InputError, match=f"sequence.{name}: must"):
        replace(Sequence(1, 1), **{name: -1})


@pytest.mark.parametrize(
    ("sequence", "spans"),
    [(Sequence(1, 1, 6), [7]), (Sequence(3, 1), [3]), (Sequence(2, 3, 4), [6, 7, 8]), (Sequence(4, 0, 2), [6])],
)
def test_attention_spans_context_prompt_and_steps(sequence, spans):
    assert attention_spans(sequence) == spans


def attention_spans(sequence):
    outcome = small(sequence)
    lines = outcome.graph.table.operations
    return [lines[number].size for number in outcome.graph.operation if lines[number].kind == "attention"]


ONE_TOKEN = Sequence(1, 1)


def small(sequence=ONE_TOKEN, rules=PHYSICAL, chip=None, **shape):
    given_ = {"hidden": 8, "heads": 1, "ffn_width": 8, "layers": 1, "vocab": 8, "positions": 16}
    network, chip = gpt2_like(**{**given_, **shape}), chip_of() if chip is None else chip
    return simulate(network, chip, spread(network, chip), [sequence], rules=rules)


def test_a_chunk_of_a_prompt_ends_without_a_token():
    outcome = small(Sequence(4, 0))
    assert outcome.op_counts["sampler"] == 0
    assert outcome.token_finish_ps == ((),)
    assert outcome.op_counts["mvm"] == 4 * (1 + 1 + 3)  # token and position, q, k, v: nobody reads more
    assert outcome.op_counts["kv_write"] == 4


def ancestors(graph, tasks):
    before = {}
    for source, target in zip(graph.src, graph.dst, strict=True):
        before.setdefault(target, []).append(source)
    found, todo = set(), list(tasks)
    while todo:
        for source in before.get(todo.pop(), ()):
            if source not in found:
                found.add(source)
                todo.append(source)
    return found


@pytest.mark.parametrize(("rules", "wait"), [(PHYSICAL, True), (COMPAT, False)])
def test_experts_wait_for_the_router(rules, wait):
    shape = {"hidden": 8, "heads": 1, "ffn_width": 8, "layers": 1, "vocab": 8, "positions": 16}
    network, chip = gpt2_like(**shape, experts=4, top_k=2), chip_of()
    graph = simulate(network, chip, spread(network, chip), [Sequence(1, 1)], rules=rules).graph
    block, matrix = network.blocks[0], np.array(graph.matrix)
    first = [task for (ffn,) in block.experts for task in np.flatnonzero(matrix == ffn.up[0]).tolist()]
    router = set(np.flatnonzero(matrix == block.router).tolist())
    assert bool(ancestors(graph, first) & router) == wait


@pytest.mark.parametrize(("rules", "alike"), [(PHYSICAL, False), (COMPAT, True)])
def test_sequences_choose_experts_by_themselves(rules, alike):
    network, chip = network_of(model(layers=3, moe={"experts": 8, "top_k": 2, "intermediate": 8})), chip_of()
    graph = simulate(network, chip, spread(network, chip), [Sequence(2, 2)] * 2, rules=rules).graph
    experts = [number for number, matrix in enumerate(network.matrices) if matrix.role == "expert"]
    width = max(np.array(graph.rank)[np.array(graph.matrix) == network.head])  # rank of the second sequence
    chosen = [[], []]
    for matrix, rank in zip(graph.matrix, graph.rank, strict=True):
        if matrix in experts:
            chosen[int(rank >= width)].append(matrix)
    assert (sorted(chosen[0]) == sorted(chosen[1])) == alike


def sizes(outcome, kind):
    lines = outcome.graph.table.operations
    return {lines[number].size for number in outcome.graph.operation if lines[number].kind == kind}


def test_payload_is_what_a_chunk_uses():
    shape = {"hidden": 6, "ffn_width": 6, "vocab": 6}
    assert sizes(small(**shape), "hop") == {6}
    assert sizes(small(rules=COMPAT, **shape), "hop") == {8}


def test_sums_of_experts_are_as_long_as_what_they_sum():
    shape = {"hidden": 6, "ffn_width": 7, "vocab": 6, "experts": 4, "top_k": 3}
    assert sizes(small(**shape), "add") == {6}
    assert sizes(small(rules=COMPAT, **shape), "add") == {6, 7}


def test_token_ids_spread_over_the_row_blocks_of_the_embedding():
    network, chip = gpt2_like(hidden=8, heads=1, ffn_width=8, layers=1, vocab=64, positions=64), chip_of()
    mapping = spread(network, chip)
    read = mapping.tiles[network.token_embedding]
    for rules, blocks in ((PHYSICAL, 8), (COMPAT, 1)):
        outcome = simulate(network, chip, mapping, [Sequence(60, 1)], rules=rules)
        assert sum(outcome.mvms_per_tile[tile] > 0 for tile in read) == blocks


def test_a_position_is_read_from_its_row_block():
    network, chip = gpt2_like(hidden=8, heads=1, ffn_width=8, layers=1, vocab=8, positions=64), chip_of()
    mapping = spread(network, chip)
    outcome = simulate(network, chip, mapping, [Sequence(1, 2, 31)])
    mvms = [outcome.mvms_per_tile[tile] for tile in mapping.tiles[network.position_embedding]]
    assert mvms == [0, 0, 0, 1, 1, 0, 0, 0]  # positions 31 and 32, of 8 rows a block
