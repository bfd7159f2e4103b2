"""The compiled part of the package alone: spans, wrong arguments, memory, and that compilers have no complaint."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tracemalloc
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models import compiled
from pimserve.device_models.memo import Memo
from pimserve.device_models.serial import SerialTiming, WayCosts
from tests.examples import examples

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "device_models" / "compiled").glob("*.c"))

built = pytest.mark.skipif(not compiled.COMPILED, reason="the package was installed without a C compiler")


def serial_steps(ways: tuple[WayCosts, ...] = (WayCosts(2, (), 3, False),), **others: Any) -> compiled.SerialSteps:
    """Row terms take a tenth of what they count."""
    memo = Memo(lambda count: count // 10)
    rows = {"tokens": memo, "outputs": memo, "requests": None, "decodes": memo}
    return compiled.SerialSteps(
        ways, **{"data_parallel": 1, "verify_tokens": 1, "chunks": {(5, 0): (1, 2, 3)}, **rows, **others}
    )


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
def test_what_leaves_64_bit_is_left_to_python() -> None:
    beyond = serial_steps((WayCosts(2**61, (), 0, False),))
    assert beyond.decode_span(3, 6, 9, (), 0) is None
    assert beyond.prompt_step(3, 6, [(5, 0)], 3) is None
    assert serial_steps((WayCosts(2**50, (), 0, False),)).decode_span(1, 2**8, 2**8, (), 0) is None  # its sum does
    assert serial_steps().prompt_step(2**70, 0, [(5, 0)], 0) is None
    assert serial_steps(data_parallel=2).prompt_step(0, 0, [(5, 0), (5, 0)], 0) is None  # chunks are dealt out


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
        (lambda: serial_steps().decode_span(1, 1, 3, (), 0).duration_fs(4), IndexError),
        (lambda: serial_steps().decode_span(1, 1, 3, (), 0).first_reaching(4), TypeError),
    ],
)
def test_wrong_arguments_are_told(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


@built
def test_nothing_is_kept() -> None:
    def steps() -> None:
        for _ in range(300):
            serial = serial_steps(requests=Memo(sum))
            serial.prompt_step(7, 2**40, [(5, 0)], 8)
            span = serial.decode_span(7, 2**40, 3, [0, 2**40, 2**41, 2**42], 0)
            assert span is not None
            span.first_reaching(2**41, 3, 2**60)
            beyond = serial_steps((WayCosts(2**61, (), 0, False),))
            assert beyond.decode_span(3, 6, 9, (), 0) is beyond.prompt_step(3, 6, [(5, 0)], 3) is None
            with pytest.raises(KeyError):
                serial.prompt_step(7, 2**40, [(6, 0)], 8)

    steps()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        steps()
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


def test_it_can_be_left_out() -> None:
    script = "from pimserve.device_models.compiled import COMPILED; print(COMPILED)"
    without = os.environ | {"PIMSERVE_COMPILED": "0"}
    told = subprocess.run([sys.executable, "-c", script], check=True, env=without, capture_output=True, text=True)
    assert told.stdout == "False\n"
