"""Ids of blocks that requests begin with: equal where their tokens are, whatever is known of these."""

import gzip
import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.prefix_blocks import PrefixBlocks
from pimserve.loadgen.spec import MAX_TOKENS
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.loadgen.workload import Workload, WorkloadSpec, generate
from tests.examples import examples
from tests.loadgen.slices import SLICES, real

POISSON = {"process": "poisson", "rate_per_s": 5.0}
Tokens = list[Hashable]

block_sizes = st.one_of(st.integers(1, 40), st.sampled_from([7, 16, 64, 1000]))


def law(low: int, high: int) -> dict[str, object]:
    return {"kind": "uniform", "low": low, "high": high}


def workload(seed: int = 0, **keys: object) -> Workload:
    return generate(WorkloadSpec.model_validate(keys), seed)


def prefixes_of(load: Workload) -> PrefixBlocks:
    assert load.prefixes is not None
    return load.prefixes


def chains(tokens: Sequence[Tokens], block_size: int) -> list[list[int]]:
    """Hash chains of full blocks: numbers in order of appearance of (the block before, its tokens)."""
    number: dict[Hashable, int] = {}
    rows = []
    for request in tokens:
        row: list[int] = []
        for end in range(block_size, len(request) + 1, block_size):
            block = (row[-1] if row else None, tuple(request[end - block_size : end]))
            row.append(number.setdefault(block, len(number)))
        rows.append(row)
    return rows


def in_order_of_appearance(ids: Ragged) -> list[list[int]]:
    number: dict[int, int] = {}
    return [[number.setdefault(block, len(number)) for block in ids[row].tolist()] for row in range(len(ids))]


def check(prefixes: PrefixBlocks, tokens: Sequence[Tokens], block_size: int) -> None:
    """Ids are equal exactly where chains of the known tokens are, and all numbers from 0 up; also of some requests."""
    ids = prefixes.ids(block_size)
    assert ids.values.dtype == np.int64
    assert in_order_of_appearance(ids) == chains(tokens, block_size)
    assert set(ids.values.tolist()) == set(range(len(set(ids.values.tolist()))))
    rows = np.arange(len(tokens))[::-2]
    some = prefixes.take(rows).ids(block_size)
    assert in_order_of_appearance(some) == chains([tokens[row] for row in rows], block_size)


# --- Traces ----------------------------------------------------------------------------------------------------------


def prompts_of_a_tree(random: np.random.Generator, n: int, most: int) -> list[Tokens]:
    """Prompts that begin as earlier ones do, up to some token, and go on with new ones."""
    prompts: list[Tokens] = []
    for request in range(n):
        before = prompts[random.integers(len(prompts))] if prompts and random.random() < 0.8 else []
        kept = before[: random.integers(len(before) + 1)]
        prompts.append([*kept, *((request, place) for place in range(random.integers(1, most)))])
    return prompts


def ids_of_prefixes(prompts: Sequence[Tokens], block_tokens: int, *, partial: bool) -> list[list[int]]:
    """As traces have them: an id for each block, also for a last one that is not full if `partial`."""
    number: dict[tuple[Hashable, ...], int] = {}
    return [
        [
            number.setdefault(tuple(prompt[: begin + block_tokens]), 1000 + len(number))
            for begin in range(0, len(prompt), block_tokens)
            if partial or begin + block_tokens <= len(prompt)
        ]
        for prompt in prompts
    ]


def known(prompt: Tokens, ids: Sequence[int], block_tokens: int) -> Tokens:
    """A prompt's tokens as far as a trace tells them apart: by its block, and the place in it."""
    spots = [(block, place) for block in ids for place in range(block_tokens)]
    return list(spots[: len(prompt)])


def replay(folder: Path, prompts: Sequence[Tokens], ids: Sequence[list[int]], **keys: object) -> Workload:
    """Of Bailian's format, in which a block has 16 tokens and requests that are no turns come at their times."""
    path = folder / "trace.jsonl"
    rows = [
        {
            "chat_id": i,
            "parent_chat_id": -1,
            "timestamp": i,
            "input_length": len(prompt),
            "output_length": 50,
            "type": "a",
        }
        | {"turn": 1, "hash_ids": ids[i]}
        for i, prompt in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workload(trace={"path": str(path)}, **keys)


@examples(60)
@given(seed=st.integers(0, 2**40), block_size=block_sizes, partial=st.booleans())
def test_blocks_of_a_trace_in_other_sizes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, block_size: int, partial: bool
) -> None:
    prompts = prompts_of_a_tree(np.random.default_rng(seed), 30, 70)
    ids = ids_of_prefixes(prompts, 16, partial=partial)
    load = replay(tmp_path_factory.mktemp("trace"), prompts, ids)
    check(prefixes_of(load), [known(*each, 16) for each in zip(prompts, ids, strict=True)], block_size)
    of_tokens = chains(prompts, block_size)
    found: dict[int, int] = {}
    blocks = prefixes_of(load).ids(block_size)
    for row, chain in enumerate(of_tokens):  # what is said to be equal is
        assert len(blocks[row]) <= len(chain)
        for block, link in zip(blocks[row].tolist(), chain, strict=False):
            assert found.setdefault(block, link) == link
    if partial:  # and where nothing must be cut anew, all that is equal is said to be
        assert in_order_of_appearance(prefixes_of(load).ids(16)) == chains(prompts, 16)


def test_a_prompt_is_known_as_far_as_it_has_ids(tmp_path: Path) -> None:
    prompts: list[Tokens] = [list(range(100)), list(range(40))]
    load = replay(tmp_path, prompts, [[5, 6, 7], [5, 6, 7]])
    assert prefixes_of(load).ids(16).lengths.tolist() == [3, 2]
    assert prefixes_of(load).ids(10).lengths.tolist() == [4, 4]
    assert prefixes_of(load).ids(10)[1].tolist() == prefixes_of(load).ids(10)[0].tolist()
    assert prefixes_of(load).ids(49).lengths.tolist() == [0, 0]


def test_an_id_at_another_place_is_another_one(tmp_path: Path) -> None:
    """A cache could not tell blocks of one prompt apart that had the same id."""
    prompts: list[Tokens] = [list(range(32))] * 3
    ids = prefixes_of(replay(tmp_path, prompts, [[5, 5], [6, 5], [5, 6]])).ids(16)
    assert in_order_of_appearance(ids) == [[0, 1], [2, 1], [0, 3]]


def test_rows_of_a_trace_that_is_replayed_in_turns(tmp_path: Path) -> None:
    """Turns that wait come behind all others: so do their blocks."""
    path = tmp_path / "trace.jsonl"
    rows = [(1, -1, 0, [1]), (2, 1, 5, [1, 2]), (3, -1, 9, [3]), (4, 2, 12, [1, 2, 4])]
    names = ("chat_id", "parent_chat_id", "timestamp", "hash_ids")
    lines = [
        {
            **dict(zip(names, row, strict=True)),
            "input_length": 16 * len(row[3]),
            "output_length": 3,
            "type": "a",
            "turn": 1,
        }
        for row in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    load = workload(trace={"path": str(path)})
    assert load.input_tokens.tolist() == [16, 16, 32, 48]
    ids = prefixes_of(load).ids(16)
    assert in_order_of_appearance(ids) == [[0], [1], [0, 2], [0, 2, 3]]
    cut = workload(trace={"path": str(path)}, num_requests=3)
    assert in_order_of_appearance(prefixes_of(cut).ids(16)) == [[0], [1], [0, 2]]


CLOSED = {"mode": "closed", "concurrency": 3}
LENGTHS = {"input": law(10, 90), "output": law(2, 9)}


@pytest.mark.parametrize(
    ("keys", "there"),
    [
        ({}, True),
        ({"num_requests": 4}, True),
        ({"arrival": POISSON}, True),
        ({"arrival": POISSON, "num_requests": 7}, False),
        (CLOSED, True),
        ({**CLOSED, "num_requests": 7}, False),
        ({"lengths": LENGTHS}, False),
        ({"arrival": POISSON, "lengths": {"joint": {"kind": "trace"}}}, False),
        ({"classes": [{"name": "a", "lengths": LENGTHS}]}, False),
        ({"sessions": {"turns": 2, "num_sessions": 2, "context": "fresh"}}, False),
    ],
)
def test_prompts_are_the_traces_while_requests_are_its_rows(tmp_path: Path, keys: dict[str, Any], there: bool) -> None:
    prompts: list[Tokens] = [list(range(48))] * 6
    assert (replay(tmp_path, prompts, [[1, 2, 3]] * 6, **keys).prefixes is not None) == there


def test_output_that_a_staggered_request_has_is_nobody_elses(tmp_path: Path) -> None:
    prompts: list[Tokens] = [list(range(40))] * 6
    load = replay(tmp_path, prompts, [[1, 2, 3]] * 6, **CLOSED, stagger=True)
    assert load.input_tokens[:3].max() > 48
    assert prefixes_of(load).ids(8).lengths.tolist() == [5] * 6


def test_a_class_with_lengths_of_its_own_has_no_prompts_of_the_trace(tmp_path: Path) -> None:
    prompts: list[Tokens] = [list(range(48))] * 40
    classes = [{"name": "recorded"}, {"name": "drawn", "lengths": {"input": law(500, 900), "output": law(1, 9)}}]
    load = replay(tmp_path, prompts, [[1, 2, 3]] * 40, classes=classes)
    recorded = load.input_tokens == 48
    assert 0 < recorded.sum() < 40
    assert prefixes_of(load).ids(16).lengths.tolist() == np.where(recorded, 3, 0).tolist()


@pytest.mark.parametrize("block_tokens", [MAX_TOKENS, 2**62, 10**30])
def test_blocks_larger_than_any_prompt(block_tokens: int, tmp_path: Path) -> None:
    session = {"block_size": block_tokens, "hash_id_scope": "global", "id": "s"}
    requests = [{"t": t, "type": "n", "in": tokens, "out": 2, "hash_ids": [8, 9]} for t, tokens in enumerate((50, 70))]
    (tmp_path / "session.json").write_text(json.dumps({**session, "requests": requests}))
    load = workload(trace={"path": str(tmp_path)})
    assert [prefixes_of(load).ids(20)[row].tolist() for row in (0, 1)] == [[0, 1], [0, 1, 2]]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mooncake_fast25_conversation_0000-1200s.jsonl.gz", marks=real),
        pytest.param("mooncake_fast25_synthetic_0000-0400s.jsonl.gz", marks=real),
    ],
)
def test_leading_runs_of_mooncake_are_those_published(name: str) -> None:
    """The published figures also count the last block of a prompt, which may be partial: it is added here."""
    expected = json.loads((SLICES / "expected_stats.json").read_text())[name]["prefix"]
    load = workload(trace={"path": str(SLICES / name)})
    full = prefixes_of(load).ids(512)
    recorded = [
        json.loads(line)["hash_ids"] for line in gzip.decompress((SLICES / name).read_bytes()).decode().splitlines()
    ]
    assert full.lengths.tolist() == (load.input_tokens // 512).tolist()
    seen: set[int] = set()
    begun: set[int] = set()
    hit_blocks = hit_tokens = 0
    for row, tokens in enumerate(load.input_tokens.tolist()):
        blocks, last = full[row].tolist(), recorded[row][-1]
        hits = next((place for place, block in enumerate(blocks) if block not in seen), len(blocks))
        partial = hits == len(blocks) and tokens % 512 > 0 and last in begun
        hit_blocks += hits + partial
        hit_tokens += hits * 512 + partial * (tokens % 512)
        seen |= set(blocks)
        begun |= set(recorded[row])
    assert (hit_blocks, hit_tokens) == (expected["hit_blocks"], expected["hit_tokens"])


# --- Prompts with something in common --------------------------------------------------------------------------------


@examples(60)
@given(
    seed=st.integers(0, 2**40),
    block_size=block_sizes,
    system=st.integers(0, 60),
    shared=st.integers(1, 60),
    each=st.one_of(st.none(), st.integers(1, 4)),
    loop=st.booleans(),
)
def test_blocks_of_shared_prompts(
    seed: int, block_size: int, system: int, shared: int, each: int | None, loop: bool
) -> None:
    prefix = {"system_tokens": system, "groups": 3, "shared_tokens": shared, "prompts_per_group": each}
    keys: dict[str, Any] = {
        "num_requests": 40,
        "prefix": prefix,
        "lengths": {"input": law(1, 60), "output": law(1, 50)},
    }
    keys |= CLOSED if loop else {"arrival": POISSON}
    load, begun = workload(seed, **keys, stagger=loop), workload(seed, **keys)
    drawn = load.prefixes.prompts
    tokens: list[Tokens] = []
    for group, prompt, length in zip(
        drawn.group.tolist(),
        drawn.prompt.tolist(),
        begun.input_tokens.tolist(),
        strict=True,
    ):
        own = [("own", prompt, place) for place in range(length - system - shared)]
        parts = [("system", 0, place) for place in range(system)], [("group", group, place) for place in range(shared)]
        tokens.append([*parts[0], *parts[1], *own])
    check(prefixes_of(load), tokens, block_size)


def test_shared_prompts_of_classes_and_of_fresh_turns() -> None:
    prefix = {"system_tokens": 20, "own_tokens": 5}
    classes = [{"name": "a"}, {"name": "b", "lengths": {"output": law(1, 9)}}]
    turns = {"turns": 2, "num_sessions": 5, "context": "fresh"}
    load = workload(arrival=POISSON, prefix=prefix, classes=classes, lengths={"output": law(1, 9)}, sessions=turns)
    system = [("system", place) for place in range(20)]
    check(prefixes_of(load), [[*system, *((row, place) for place in range(5))] for row in range(10)], 4)


# --- Sessions --------------------------------------------------------------------------------------------------------


@examples(60)
@given(seed=st.integers(0, 2**40), block_size=block_sizes, most=st.one_of(st.none(), st.integers(1, 200)))
def test_blocks_of_sessions(seed: int, block_size: int, most: int | None) -> None:
    sessions = {"turns": law(1, 5), "num_sessions": 8}
    keys: dict[str, Any] = {"arrival": POISSON, "lengths": {"input": law(1, 60), "output": law(1, 40)}}
    load = workload(seed, **keys, sessions={**sessions, "context_tokens": most})
    whole = workload(seed, **keys, sessions=sessions)
    assert load.turns is not None
    told: list[Tokens] = []
    held: list[Tokens] = []
    for session, prompt, context, output in zip(
        load.turns.session.tolist(),
        load.input_tokens.tolist(),
        whole.input_tokens.tolist(),
        load.output_tokens.tolist(),
        strict=True,
    ):
        said: Tokens = [(session, place) for place in range(context + output)]
        held.append(said[context - prompt :])
        told.append(said if context == prompt else [])
    check(prefixes_of(load), told, block_size)
    links = chains(held, block_size)
    times = np.bincount([link for row in links for link in row], minlength=1)
    for row, tokens in zip(links, told, strict=True):  # what has no id is nobody else's
        assert tokens or all(times[link] == 1 for link in row)


# --- Nothing known ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys", [{}, {"sessions": {"turns": 3, "num_sessions": 4, "context": "fresh"}}, CLOSED, {"duration_s": 3}]
)
def test_otherwise_nothing_is_known_to_be_shared(keys: dict[str, Any]) -> None:
    arrival = {} if "mode" in keys else {"arrival": POISSON}
    assert workload(**arrival, **keys, lengths=LENGTHS).prefixes is None


def test_no_requests_have_no_ids() -> None:
    prefix = {"system_tokens": 20, "own_tokens": 5}
    load = workload(arrival=POISSON, num_requests=3, prefix=prefix, lengths={"output": law(1, 9)})
    ids = prefixes_of(load).take(np.arange(0)).ids(4)
    assert (len(ids), len(ids.values)) == (0, 0)
    assert prefixes_of(load).ids(100).lengths.tolist() == [0, 0, 0]
