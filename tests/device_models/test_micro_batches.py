"""When micro-batches are where: against a naive event schedule, times worked out by hand, and published formulas."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.micro_batches import MicroBatches, Visit
from pimserve.device_models.round_trips import PartTimes, schedule_fs
from pimserve.device_models.step import StepShape
from tests.device_models.naive_schedule import naive_schedule
from tests.examples import examples

MS = 10**12

Matrix = list[list[int]]  # by visit and part


def parts_of(stages: Sequence[Matrix], closing: Sequence[int]) -> list[PartTimes[int]]:
    columns = [list(zip(*stage, strict=True)) for stage in stages]
    return [
        PartTimes([1] * len(stages[0]), *(list(stage[part]) for stage in columns), last)  # type: ignore[arg-type]
        for part, last in enumerate(closing)
    ]


def alike(attention: int, link: int, experts: int, layers: int, parts: int) -> int:
    stages = [[[time] * parts for _ in range(layers)] for time in (attention, link, experts, link)]
    return schedule_fs(parts_of(stages, [0] * parts))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[Matrix], list[int]]:
    visits, parts = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    scale = draw(st.sampled_from([3, 20, 10**6]))
    times = st.integers(0, scale)
    matrix = st.lists(st.lists(times, min_size=parts, max_size=parts), min_size=visits, max_size=visits)
    return [draw(matrix) for _ in range(4)], draw(st.lists(times, min_size=parts, max_size=parts))


@examples(300)
@given(schedules())
def test_the_schedule_is_that_of_every_event(drawn: tuple[list[Matrix], list[int]]) -> None:
    stages, closing = drawn
    found = schedule_fs(parts_of(stages, closing))
    assert found == naive_schedule(*map(np.array, stages), np.array(closing))


def test_two_layers_of_four_stages_take_eight_of_one_each() -> None:
    assert alike(MS, MS, MS, layers=2, parts=1) == 8 * MS


@pytest.mark.parametrize(
    ("attention", "link", "experts", "layers", "parts"),
    [(100, 20, 100, 32, 3), (120, 10, 80, 61, 3), (60, 30, 130, 94, 4), (5, 0, 7, 40, 2), (100, 50, 100, 8, 3)],
)
def test_hidden_links_give_the_published_step_time(
    attention: int, link: int, experts: int, layers: int, parts: int
) -> None:
    """MegaScale-Infer (arXiv 2504.02263): T = (Ta + Te + 2 Tc) + Tf (m L - 1) where m >= 2 (1 + Tc / Tf)."""
    longest = max(attention, experts)
    assert parts * longest >= 2 * (longest + link)
    expected = attention + experts + 2 * link + longest * (parts * layers - 1)
    assert alike(attention, link, experts, layers, parts) == expected


@pytest.mark.parametrize(("share", "gain"), [(0.10, 1.10), (0.28, 1.28), (0.38, 1.38)])
def test_a_third_micro_batch_gains_what_was_measured(share: float, gain: float) -> None:
    """The gains of its ablation, at the shares of transfers that they imply; micro-batches of the same size."""
    stage, layers = 10**6, 56
    two, three = (alike(stage, round(share * stage), stage, layers, parts) for parts in (2, 3))
    assert 3 / three / (2 / two) == pytest.approx(gain, rel=0.02)


@given(
    st.integers(1, 40),
    st.integers(0, 60_000),
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 2000)), max_size=3),
    st.dictionaries(st.integers(2, 60), st.integers(1, 5), max_size=4),
    st.integers(1, 3),
)
def test_micro_batches_have_all_of_a_step_and_no_more(
    decodes: int, context: int, chunks: list[tuple[int, int]], cuts: dict[int, int], data_parallel: int
) -> None:
    context = max(context, decodes)
    micro = MicroBatches(((1, 2), *sorted(cuts.items())), (4, 0, 4), (Visit(1, 0, 1, "moe_layers"),) * 4, (0, 0))
    tokens, prefill_fs = sum(chunk[0] for chunk in chunks), 4 * sum(chunk[1] for chunk in chunks)
    completed = len(chunks) // 2
    shape = StepShape(
        1,
        decodes,
        context,
        tokens,
        len(chunks),
        decodes + completed,
        -(-decodes // data_parallel) + tokens,
        0,
        prefill_fs,
        0,
        0,
        *(decodes, context, len(chunks), decodes + completed),
    )
    parts = micro.split(shape, data_parallel)
    assert len(parts) == micro.parts
    for name in ("decodes", "context", "prefill_tokens", "chunks", "outputs", "prefill_fs"):
        assert sum(getattr(part, name) for part in parts) == getattr(shape, name)
    filled = [part for part in parts if part.tokens]
    assert len(filled) <= micro.of_step(shape.tokens)
    for part in parts:
        assert part.decodes <= part.context or not part.decodes
        assert part.tokens or not any(part[1:])  # who has no tokens has nothing
        assert part.outputs <= part.tokens
    most, least = (pick(part.tokens for part in parts[: micro.of_step(shape.tokens)]) for pick in (max, min))
    assert most - least <= 2


def test_a_step_of_few_tokens_is_not_cut() -> None:
    micro = MicroBatches(((1, 1), (8, 2), (32, 3)), (1, 0, 1), (Visit(1, 0, 1, "moe_layers"),), (0, 0))
    assert [micro.of_step(tokens) for tokens in (1, 7, 8, 31, 32, 500)] == [1, 1, 2, 2, 3, 3]
