"""What a trace may cost to read: long lines and what gzip makes of little are bounded, honest large traces are not."""

import gzip
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.traces import Trace, TraceSpec, csv_rows, load_trace, rows_read, text_blocks

MIB = 1 << 20
CSV_HEADER = "arrival_s,input_tokens,output_tokens\n"
JSON_ROW = '{"arrival_s": %d, "input_tokens": 1, "output_tokens": 2}\n'


def load(folder: Path, content: bytes, kind: str = "csv", **keys: object) -> Trace:
    (folder / "trace").write_bytes(content)
    return load_trace(TraceSpec.model_validate({"format": kind, "path": str(folder / "trace"), **keys}))


def refused(folder: Path, content: bytes, kind: str = "csv", **keys: object) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, content, kind, **keys)
    return str(caught.value).removeprefix(f"{folder}/")


@contextmanager
def held_below(mib: float) -> Iterator[None]:
    """Whether no more memory is held at any time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mib * MIB


def bomb(head: str, part: str, mib: int) -> bytes:
    """A gzip stream of that many MiB, most of them the same MiB again and again."""
    return gzip.compress(head.encode()) + gzip.compress((part * (MIB // len(part))).encode()) * mib


@pytest.mark.parametrize("kind", ["csv", "azure", "jsonl", "mooncake"])
@pytest.mark.parametrize("compressed", [True, False])
def test_an_endless_line_is_refused_when_a_mebibyte_of_it_is_read(tmp_path: Path, kind: str, compressed: bool) -> None:
    content = bomb("", "\0", 2_000) if compressed else bytes(3 * MIB)
    with held_below(12):
        assert refused(tmp_path, content, kind, max_requests=1) == "trace:1: the line is longer than 1,048,576 bytes"


def test_an_endless_line_below_good_ones_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, bomb(CSV_HEADER + "0,1,1\n1,1,1\n", " ", 3)) == (
        "trace:4: the line is longer than 1,048,576 bytes"
    )


@pytest.mark.parametrize("block_bytes", [7, 4_096, MIB])
@pytest.mark.parametrize("excess", [0, 1])
def test_the_limit_of_a_line_is_exact(
    tmp_path: Path, block_bytes: int, excess: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(text_blocks, "MAX_LINE_BYTES", MIB if block_bytes == MIB else 5_000)
    line = (JSON_ROW % 1)[:-1].ljust(text_blocks.MAX_LINE_BYTES + excess) + "\n"
    content = (JSON_ROW % 0 + line + JSON_ROW % 2).encode()
    if excess:
        assert refused(tmp_path, content, "jsonl").startswith("trace:2: the line is longer than")
    else:
        assert load(tmp_path, content, "jsonl").rows_read == 3


@pytest.mark.medium
@pytest.mark.parametrize(("kind", "head", "part"), [("csv", CSV_HEADER, "0,1,1\n"), ("jsonl", "", JSON_ROW % 0)])
def test_max_requests_ends_the_reading(tmp_path: Path, kind: str, head: str, part: str) -> None:
    content = bomb(head, part, 2_000) + b"what is no gzip is never reached"
    with held_below(60):
        trace = load(tmp_path, content, kind, max_requests=100)
    assert len(trace.arrival_ps) == 100
    assert trace.rows_read == 100 + trace.rows_dropped["beyond max_requests"] <= 2 * MIB // len(part)


@pytest.mark.medium
def test_a_row_takes_some_bytes_whatever_the_file_takes(tmp_path: Path) -> None:
    """Three columns of 64 bits, and what they are copied into as they grow; of the file, a block and its parse."""
    rows = 400_000
    part = "".join(f"0,{1 + i % 900},{1 + i % 77},{'x' * 60}\n" for i in range(1000))
    content = gzip.compress((CSV_HEADER[:-1] + ",note\n").encode()) + gzip.compress(part.encode()) * (rows // 1000)
    with held_below(24 * 2.5 * rows / MIB + 30):
        assert load(tmp_path, content).rows_read == rows


def test_max_requests_ends_the_reading_of_what_is_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 16)
    content = (CSV_HEADER + "".join(f"{t},1,{1 + t}\n" for t in range(1_000))).encode()
    trace = load(tmp_path, content, start_s=300, end_s=900, max_requests=200)
    assert trace.output_tokens.tolist() == list(range(301, 501))
    assert 500 <= trace.rows_read <= 503
    whole = load(tmp_path, content, start_s=300, end_s=400, max_requests=200)
    assert len(whole.arrival_ps) == 100
    assert 400 < whole.rows_read <= 403
    message = "trace: no row lies from start_s to end_s; the trace ends behind end_s, and begins at 0 s"
    assert refused(tmp_path, content, start_s=300.2, end_s=300.5, max_requests=1).startswith(message)


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_empty_lines_take_no_memory(tmp_path: Path, kind: str) -> None:
    good = (CSV_HEADER + "0,1,1" if kind == "csv" else (JSON_ROW % 0)[:-1]) + "\n"
    content = bomb(good, "\n", 40)
    with held_below(12):
        assert load(tmp_path, content, kind).rows_read == 1
        assert refused(tmp_path, content + gzip.compress(b"1,1,1\n"), kind).startswith("trace:")


@pytest.mark.medium
def test_a_row_whose_quotes_never_end_is_refused(tmp_path: Path) -> None:
    with held_below(80):
        message = refused(tmp_path, bomb(CSV_HEADER + '"\n', '","\n', 5))
    assert "the row is longer than 1,048,576 characters" in message


@pytest.mark.parametrize("row", ["7,1,1\n", ",1,1\n"], ids=["with a time", "without one"])
@pytest.mark.parametrize("fast", [True, False])
def test_more_rows_than_requests_may_be_are_refused_with_their_line(
    tmp_path: Path, row: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (csv_rows, rows_read):
        monkeypatch.setattr(module, "MAX_REQUESTS", 5)
    if not fast:
        monkeypatch.setattr(csv_rows, "_parse_fast", lambda *_: None)
    assert load(tmp_path, (CSV_HEADER + "7,1,1\n" + row * 4).encode()).rows_read == 5
    assert refused(tmp_path, (CSV_HEADER + "7,1,1\n" + row * 9).encode()).startswith("trace:7: more than")


TEXTS = {
    "csv": CSV_HEADER + "".join(f"{t / 4},{1 + t},{9 - t}\n" for t in range(9)) + "\n\n",
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    + "".join(f"2023-11-16 23:59:5{t}.75,{1 + t},{9 - t}\r\n" for t in range(9)),
    "jsonl": "".join(JSON_ROW % t for t in range(9)) + "\n",
}


@pytest.mark.medium
@given(
    kind=st.sampled_from(sorted(TEXTS)),
    block_bytes=st.integers(1, 100),
    edits=st.lists(st.tuples(st.integers(0, 400), st.sampled_from('0123456789,.\n -+eT:\r"#n{}é')), max_size=2),
)
def test_traces_are_read_alike_however_they_are_cut_into_blocks(
    tmp_path_factory: pytest.TempPathFactory, kind: str, block_bytes: int, edits: list[tuple[int, str]]
) -> None:
    text = list(TEXTS[kind])
    for place, char in edits:
        text[place % len(text)] = char
    folder, content = tmp_path_factory.mktemp("t"), "".join(text).encode()

    def outcome() -> object:
        try:
            trace = load(folder, content, kind)
        except InputError as error:
            return str(error)
        table = np.array([trace.arrival_ps, trace.input_tokens, trace.output_tokens])
        return table.tolist(), trace.rows_read, trace.rows_dropped, trace.warnings

    whole = outcome()
    with patch.object(text_blocks, "BLOCK_BYTES", block_bytes):
        assert outcome() == whole
