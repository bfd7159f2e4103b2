"""The compiled part of the package alone: spans, wrong arguments, memory, and that compilers have no complaint."""

import gc
import os
import shutil
import subprocess
import sys
import sysconfig
import tracemalloc
from itertools import accumulate
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pimserve.device_models import compiled
from pimserve.device_models.evaluate import step_of
from pimserve.device_models.memo import Memo
from pimserve.device_models.serial import SerialTiming, WayCosts
from tests.examples import examples

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "device_models" / "compiled").glob("*.c"))

built = pytest.mark.skipif(not compiled.COMPILED, reason="what is in C was not built, or is of other sources")


def serial_steps(ways: tuple[WayCosts, ...] = (WayCosts(2, (), 3, False),), **others: Any) -> compiled.SerialSteps:
    """Row terms take a tenth of what they count."""
    memo = Memo(lambda count: count // 10)
    rows = {"tokens": memo, "outputs": memo, "requests": None, "decodes": memo}
    return compiled.SerialSteps(
        ways, **{"data_parallel": 1, "verify_tokens": 1, "chunks": {(5, 0): (1, 2, 3)}, **rows, **others}
    )


def mixed_steps(**others: Any) -> compiled.MixedSteps:
    """Two MoE layers; row terms take 1 fs in each visit, routed experts as many as their outcome's number and layer."""
    rows, outcomes = Memo(lambda _: [1] * 5), np.arange(256).reshape(128, 2)
    plan = {
        "rounds": ((2, 1, True),), "closing_layers": 0, "layers": 2, "cuts": ((1, 1), (2, 2)),
        "data_parallel": 1, "verify_tokens": 1, "ways": (WayCosts(2, (), 3, False),),
        "rows": ((0, False, rows),), "once": ((0, True, Memo(lambda count: count)),),
        "pools": Memo(lambda _: outcomes), "pool_size": 128,
        "thousandths": 1000, "fine_tokens": 32, "octave_bits": 3,
    }  # fmt: skip
    return compiled.MixedSteps(**plan | others)


def shape(decodes: int = 3, context: int = 9, prefill: int = 0, busiest: int = 3, prefill_fs: int = 0) -> Any:
    """The fields of a step's shape."""
    return 1, decodes, context, prefill, 0, decodes, busiest, 0, prefill_fs, 0, 0, decodes, context, 0, decodes


WAYS = st.builds(
    WayCosts,
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 60)), max_size=2).map(tuple),
    st.integers(0, 60) | st.integers(0, 500),
    st.booleans(),
)


@built
@examples(500)
@given(
    ways=st.lists(WAYS, min_size=1, max_size=3).map(tuple),
    requests=st.integers(1, 9),
    mean=st.integers(1, 60),
    most=st.integers(1, 60),
    groups=st.integers(1, 3),
)
@example(ways=(WayCosts(2, (), 0, False), WayCosts(1, (), 5, False)), requests=2, mean=5, most=10, groups=1)  # at first
@example(ways=(WayCosts(1, (), 8, False), WayCosts(2, (), 0, False)), requests=2, mean=5, most=10, groups=1)  # later on
def test_a_span_ends_where_python_ends_it(
    ways: tuple[WayCosts, ...], requests: int, mean: int, most: int, groups: int
) -> None:
    first, growth, steps = SerialTiming(groups, ways, ()).decode_span(requests, requests * mean, most)
    span = serial_steps(ways, data_parallel=groups).decode_span(requests, requests * mean, most, (), 0)
    assert span is not None
    share = -(-requests // groups)
    assert (span.steps, span.busiest_tokens) == (steps, share)
    times = list(accumulate(first + share // 10 + growth * k for k in range(steps)))
    assert [span.duration_fs(n + 1) for n in range(steps)] == times
    for n, time in enumerate(times[:-1]):
        assert span.first_reaching(time, steps, times[-1]) == (times.index(time) + 1, time)
        if time < times[n + 1]:
            assert span.first_reaching(time + 1, steps, times[-1]) == (n + 2, times[n + 1])


@built
@examples(500)
@given(
    ways=st.lists(WAYS, min_size=1, max_size=3).map(tuple),
    decodes=st.integers(0, 9),
    mean=st.integers(1, 60),
    chunks=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=3),
    groups=st.integers(1, 3),
    verify=st.sampled_from([1, 3]),
)
def test_a_step_with_prompts_is_as_in_python(
    ways: tuple[WayCosts, ...], decodes: int, mean: int, chunks: list[tuple[int, int]], groups: int, verify: int
) -> None:
    timing, costs = SerialTiming(groups, ways, ()), Memo(lambda chunk: (7 * chunk[0], sum(chunk), 13 * chunk[1]))
    rows = {"tokens": Memo(lambda count: 5 * count), "requests": Memo(lambda counts: 3 * counts[0] + counts[1])}
    serial = serial_steps(ways, data_parallel=groups, verify_tokens=verify, chunks=costs, **rows)
    asked = decodes, decodes * mean, chunks, decodes + 1
    if groups > 1 and len(chunks) > 1:  # they are dealt out
        assert serial.shape(*asked) is serial.prompt_step(*asked) is None
        return
    shape = step_of(timing, *asked, costs.__getitem__, verify)
    sampled = decodes + 1 if verify == 1 else verify * decodes + len(chunks)
    rows_fs = 5 * shape[6] + sampled // 10 + 3 * decodes + len(chunks)
    assert serial.shape(*asked) == shape
    assert serial.prompt_step(*asked) == (shape, rows_fs + timing.layers_fs(shape))


@built
def test_what_leaves_64_bit_is_left_to_python() -> None:
    beyond = serial_steps((WayCosts(2**61, (), 0, False),))
    assert beyond.decode_span(3, 6, 9, (), 0) is None
    assert beyond.prompt_step(3, 6, [(5, 0)], 3) is None
    assert serial_steps((WayCosts(2**50, (), 0, False),)).decode_span(1, 2**8, 2**8, (), 0) is None  # its sum does
    assert serial_steps().prompt_step(2**70, 0, [(5, 0)], 0) is None
    assert serial_steps(data_parallel=2).prompt_step(0, 0, [(5, 0), (5, 0)], 0) is None  # chunks are dealt out
    # Nor do products of counts go round.
    assert serial_steps(verify_tokens=3).prompt_step(2**62, 1, [(5, 0)], 1) is None
    assert serial_steps(verify_tokens=3).decode_span(2**62, 1, 1, (), 0) is None
    assert serial_steps().decode_span(1, 1, 2**62, (), 0) is None
    assert serial_steps(chunks={(2**62, 0): (1, 2, 3)}).prompt_step(1, 1, [(2**62, 0)], 1) is None
    assert serial_steps().prompt_step(-5, 7, [(5, 0)], 1) is None


@built
def test_sums_of_times_may_leave_it() -> None:
    rows = {"tokens": {6: 2**62 + 1}, "outputs": {1: 2**62 + 2}, "requests": {(1, 1): 2**62 + 3}}
    found = serial_steps(**rows).prompt_step(1, 0, [(5, 0)], 1)
    assert found is not None
    assert found[1] == 3 * 2**62 + 6 + 3 + 1


def _slow(time: int, thousandths: int = 1000) -> compiled.MixedSteps:
    return mixed_steps(pools=Memo(lambda _: np.full((128, 2), time)), thousandths=thousandths)


@built
@pytest.mark.parametrize(
    "ask",
    [
        lambda: mixed_steps().step_fs(shape(2**62, prefill=2**62), 0),
        lambda: mixed_steps().step_fs(shape(-3), 0),
        lambda: mixed_steps().step_fs(shape(busiest=2**62), 0),
        lambda: mixed_steps().step_fs(shape(prefill=1, prefill_fs=2**63 - 1), 0),
        lambda: mixed_steps().step_fs(shape(), 2**70),
        lambda: mixed_steps().ends_fs(2**62, 2**62, 0, 2, 0),
        lambda: mixed_steps().ends_fs(3, -9, 0, 2, 0),
        lambda: mixed_steps().ends_fs(3, 9, 0, -2, 0),
        lambda: mixed_steps().ends_fs(3, 9, 0, 2**62, 0),
        lambda: mixed_steps().ends_fs(3, 9, 0, 2, 2**62),
        lambda: mixed_steps(ways=(WayCosts(2**61, (), 0, False),)).ends_fs(3, 9, 0, 2, 0),
        lambda: mixed_steps(rounds=((2, 2**10, True),), ways=(WayCosts(2**58, (), 0, False),)).step_fs(shape(), 0),
        lambda: mixed_steps(closing_layers=2**10, ways=(WayCosts(2**58, (), 0, False),)).step_fs(shape(), 0),
        lambda: mixed_steps(rows=((0, False, Memo(lambda _: [0, 2**61, 0, 0, 0])),)).step_fs(shape(), 0),
        lambda: _slow(2**61).ends_fs(3, 9, 0, 2, 0),
        lambda: _slow(2**40, 1000 * 2**34).ends_fs(3, 9, 0, 2, 0),  # whose lower 64 bit are 0
        lambda: _slow(-1).ends_fs(3, 9, 0, 2, 0),
        lambda: mixed_steps(rows=((0, False, Memo(lambda _: [2**61] * 5)),)).ends_fs(3, 9, 0, 2, 0),
    ],
)
def test_micro_batches_that_leave_64_bit_are_left_to_python(ask: Any) -> None:
    assert ask() is None


@built
@pytest.mark.parametrize(
    ("build", "plan"),
    [
        (serial_steps, {"ways": (WayCosts(-1, (), 3, False),)}),
        (serial_steps, {"ways": (WayCosts(1, ((1, -1),), 3, False),)}),
        (serial_steps, {"data_parallel": 2**62}),
        (mixed_steps, {"verify_tokens": 2**62}),
        (mixed_steps, {"rounds": ((-1, 1, True),)}),
        (mixed_steps, {"rounds": ((2**61, 1, False),)}),
        (mixed_steps, {"rounds": ((2**19, 1, False), (2**20, 1, True))}),
        (mixed_steps, {"rounds": ((2, -1, True),)}),
        (mixed_steps, {"closing_layers": -1}),
        (mixed_steps, {"layers": 2**40}),
        (mixed_steps, {"pool_size": 2**62}),
    ],
)
def test_plans_beyond_it_are_told(build: Any, plan: dict[str, Any]) -> None:
    with pytest.raises(OverflowError, match="64 bit"):
        build(**plan)


@built
@pytest.mark.parametrize("step", [-1, -129, 127, 2**63 - 1, -(2**63)])
def test_outcomes_are_taken_in_turn(step: int) -> None:
    mixed = mixed_steps()
    assert mixed.step_fs(shape(), step) == mixed.step_fs(shape(), step % 128)
    assert mixed.ends_fs(3, 9, step, 9, 5) == mixed.ends_fs(3, 9, step % 128, 9, 5)
    assert len({mixed.step_fs(shape(), each) for each in range(128)}) > 100


@built
def test_what_costs_are_asked_for_may_change_the_list() -> None:
    class Chunks(dict):
        def __missing__(self, key: tuple[int, int]) -> tuple[int, int, int]:
            asked.clear()
            return (1, 2, 3)

    asked = [(5 + i, i) for i in range(9)]
    found = serial_steps(chunks=Chunks()).prompt_step(1, 1, asked, 1)
    assert found is not None
    assert found[0][3] == 5


@built
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: serial_steps(()), ValueError),
        (lambda: serial_steps(data_parallel=0), ValueError),
        (lambda: serial_steps(((1, 2),)), TypeError),
        (lambda: serial_steps().prompt_step(1, 2, [(5, 0)]), TypeError),
        (lambda: serial_steps().prompt_step(1, 2, ((5, 0),), 1), TypeError),
        (lambda: serial_steps().prompt_step(1, "2", [(5, 0)], 1), TypeError),
        (lambda: serial_steps().prompt_step(1, 2, [(6, 0)], 1), KeyError),
        (lambda: serial_steps(chunks={(5, 0): (1, 2)}).prompt_step(1, 2, [(5, 0)], 1), TypeError),
        (lambda: serial_steps().decode_span(0, 0, 1, (), 0), ValueError),
        (lambda: serial_steps().decode_span(1, 1, 1, 7, 0), TypeError),
        (lambda: serial_steps().decode_span(1, 1, 3, [0, 1], 0), IndexError),
        (lambda: serial_steps().decode_span(1, 1, 1, [0, 1], -1), IndexError),
        (lambda: serial_steps().decode_span(1, 1, 1, [0, 1], 2**63 - 1), IndexError),
        (lambda: serial_steps().decode_span(1, 1, 1, (0, 1), 0), TypeError),
        (lambda: serial_steps((5,)), TypeError),
        (lambda: serial_steps(((1, (5,), 2, False),)), TypeError),
        (lambda: serial_steps().decode_span(1, 1, 3, (), 0).duration_fs(4), IndexError),
        (lambda: serial_steps().decode_span(1, 1, 3, (), 0).first_reaching(4), TypeError),
        (lambda: mixed_steps(rounds=(5,)), TypeError),
        (lambda: mixed_steps(rows=(5,)), TypeError),
        (lambda: mixed_steps(rows=((7, False, {}),)), ValueError),
        (lambda: mixed_steps(cuts=()), ValueError),
        (lambda: mixed_steps(cuts=((1, 17),)), ValueError),
        (lambda: mixed_steps(layers=0), ValueError),
        (lambda: mixed_steps(pool_size=0), ValueError),
        (lambda: mixed_steps(fine_tokens=1), ValueError),
        (lambda: mixed_steps(octave_bits=-1), ValueError),
        (lambda: mixed_steps(octave_bits=70), ValueError),
        (lambda: mixed_steps().step_fs(shape()), TypeError),
        (lambda: mixed_steps().step_fs(list(shape()), 0), TypeError),
        (lambda: mixed_steps().step_fs(shape()[:8], 0), TypeError),
        (lambda: mixed_steps().ends_fs(0, 0, 0, 1, 0), ValueError),
        (lambda: mixed_steps().ends_fs(1, 1, 0, 1), TypeError),
        (lambda: mixed_steps(rows=((0, False, Memo(lambda _: [1] * 4)),)).ends_fs(3, 9, 0, 2, 0), TypeError),
        (lambda: mixed_steps(pools={}).ends_fs(3, 9, 0, 2, 0), KeyError),
        (lambda: mixed_steps(pools={1: "", 2: ""}).ends_fs(3, 9, 0, 2, 0), TypeError),
        (lambda: mixed_steps(pools={1: b"", 2: b""}).ends_fs(3, 9, 0, 2, 0), ValueError),
        (lambda: mixed_steps(pools=Memo(lambda _: np.zeros((128, 3), int))).ends_fs(3, 9, 0, 2, 0), ValueError),
    ],
)
def test_wrong_arguments_are_told(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


@built
def test_a_span_whose_list_has_become_shorter() -> None:
    experts = [0, 1, 2, 3]
    span = serial_steps().decode_span(1, 1, 3, experts, 0)
    assert span is not None
    del experts[2:]
    with pytest.raises(IndexError):
        span.duration_fs(3)


@pytest.mark.medium
@built
def test_nothing_is_kept() -> None:
    class Fresh(dict):
        def __missing__(self, key: tuple[int, int]) -> tuple[int, int, int]:
            return 2**40 + key[0], 2, 3

    def steps() -> None:
        for _ in range(300):
            serial = serial_steps(requests=Memo(sum), chunks=Fresh({(6, 0): (1,)}))
            serial.prompt_step(7, 2**40, [(5, 0)], 8)
            span = serial.decode_span(7, 2**40, 3, [0, 2**40, 2**41, 2**42], 0)
            assert span is not None
            span.first_reaching(2**41, 3, 2**60)
            beyond = serial_steps((WayCosts(2**61, (), 0, False),))
            assert beyond.decode_span(3, 6, 9, (), 0) is beyond.prompt_step(3, 6, [(5, 0)], 3) is None
            with pytest.raises(TypeError):
                serial.prompt_step(7, 2**40, [(6, 0)], 8)
            mixed = mixed_steps()
            assert mixed.step_fs(shape(90), 3)
            assert mixed.ends_fs(90, 2**40, 3, 9, 2**40)
            assert _slow(2**61).ends_fs(90, 90, 0, 2, 0) is _slow(2**61).step_fs(shape(90), 0) is None
            with pytest.raises(KeyError):
                mixed_steps(pools={1: np.zeros((128, 2), int)}).ends_fs(3, 9, 0, 2, 0)
            with pytest.raises(ValueError, match="rows"):
                mixed_steps(rows=((0, False, {}), (7, False, {})))

    steps()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        steps()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_compiler_has_no_complaint(source: Path) -> None:
    warnings = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-missing-field-initializers", "-Werror"]
    include = ["-isystem", sysconfig.get_paths()["include"]]
    told = subprocess.run(
        ["cc", "-std=gnu11", "-O2", *warnings, *include, "-fsyntax-only", str(source)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize("source", [*SOURCES, *sorted(SOURCES[0].parent.glob("*.h"))], ids=lambda path: path.name)
def test_a_file_in_c_is_one_idea(source: Path) -> None:
    lines = source.read_text().splitlines()
    assert len(lines) <= 400
    assert max(map(len, lines)) <= 120


@built
def test_it_is_left_out_where_sources_have_changed(tmp_path: Path) -> None:
    (tmp_path / "one.c").write_text("1")
    (tmp_path / "one.h").write_text("2")
    (tmp_path / "one.py").write_text("3")
    assert compiled.is_of_its_sources(crc32(b"12"), tmp_path)
    assert not compiled.is_of_its_sources(crc32(b"13"), tmp_path)
    assert compiled.is_of_its_sources(7, tmp_path / "as a wheel has it")
    assert compiled.is_of_its_sources(compiled.SOURCES, SOURCES[0].parent)


def test_it_can_be_left_out() -> None:
    script = "from pimserve.device_models.compiled import COMPILED; print(COMPILED)"
    without = os.environ | {"PIMSERVE_COMPILED": "0"}
    told = subprocess.run([sys.executable, "-c", script], check=True, env=without, capture_output=True, text=True)
    assert told.stdout == "False\n"
