"""Traces that cannot be replayed: every message names the file, the row and what is wrong."""

import gzip
from pathlib import Path

import pytest

from tests.cluster.scenario.refusals import CSV, refusal

AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = b"2023-11-16 18:15:46.6805900,374,44\n"
TRACES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("csv", b"", ": the file is empty; a header arrival_s,input_tokens,output_tokens"),
    "header only": ("csv", CSV, ": the file holds a header but no rows"),
    "no header": ("csv", b"0.0,5,5\n", ":1: column arrival_s, input_tokens, output_tokens is missing"),
    "missing column": ("csv", b"arrival_s,input_tokens\n0,5\n", ":1: column output_tokens is missing"),
    "wrong format": ("azure", CSV + b"0.0,5,5\n", ":1: column TIMESTAMP"),
    "short row": ("csv", CSV + b"0.0,5,5\n1.0,5\n", ":3: 3 fields are needed"),
    "long row": ("csv", CSV + b"0.0,5,5,5\n", ":2: 3 fields are needed"),
    "blank row": ("csv", CSV + b"0.0,5,5\n\n1.0,5,5\n", ":3: 3 fields are needed"),
    "word for a number": ("csv", CSV + b"0.0,five,5\n", ":2: input_tokens is 'five'; a whole number from 1 to"),
    "fraction of a token": ("csv", CSV + b"0.0,5,5.5\n", ":2: output_tokens is '5.5'"),
    "no token": ("csv", CSV + b"0.0,0,5\n", ":2: input_tokens is '0'"),
    "negative tokens": ("csv", CSV + b"0.0,5,-5\n", ":2: output_tokens is '-5'"),
    "too many tokens": ("csv", CSV + b"0.0,5,99999999\n", ":2: output_tokens is '99999999'"),
    "negative time": ("csv", CSV + b"-1.0,5,5\n", ":2: arrival_s is '-1.0'; seconds are needed"),
    "no number for a time": ("csv", CSV + b"nan,5,5\n", ":2: arrival_s is 'nan'"),
    "endless time": ("csv", CSV + b"1e400,5,5\n", ":2: arrival_s is '1e400'"),
    "time beyond the clock": ("csv", CSV + b"0,5,5\n1e7,5,5\n", ":3: arrival_s '1e7' lies more than 9e+06 s"),
    "time turns back": ("csv", CSV + b"2.0,5,5\n1.0,5,5\n", ":3: arrival_s '1.0' lies before the row above"),
    "impossible date": ("azure", AZURE + ROW + b"2023-11-31 00:00:00,5,5\n", ":3: TIMESTAMP is '2023-11-31 00:00:00'"),
    "date with no such zone": ("azure", AZURE + b"2023-11-16 18:15:46+25:00,5,5\n", ":2: TIMESTAMP is"),
    "not text": ("csv", CSV + b"0.0,\xff,5\n", ":2: byte 0xff is not UTF-8 text"),
    "gzip cut short": ("csv", gzip.compress(CSV * 50)[:-9], ": the gzip stream ends too early"),
    "gzip damaged": ("csv", gzip.compress(CSV)[:-6] + b"abcdef", ": the gzip stream is damaged"),
}


@pytest.mark.parametrize("name", TRACES)
def test_traces(name: str, tmp_path: Path) -> None:
    form, content, message = TRACES[name]
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    assert refusal(tmp_path, None, [], f"{form}:{file}").startswith(f"{file}{message}")


def test_trace_arguments(tmp_path: Path) -> None:
    good = tmp_path / "t.csv"
    good.write_bytes(CSV + b"0.0,5,5\n1.0,5,5\n")
    (tmp_path / "empty").mkdir()
    assert "--trace: 'json:x' is not PATH or FORMAT:PATH with FORMAT one of auto, azure, " in refusal(
        tmp_path, None, [], "json:x"
    )
    assert "x.csv: no such file, neither here nor in" in refusal(tmp_path, None, [], "x.csv")
    assert "x.csv: no such file, neither here nor in" in refusal(tmp_path, None, [], "csv:x.csv")
    assert f"{tmp_path / 'empty'}: holds no file that ends in .csv" in refusal(
        tmp_path, None, [], f"csv:{tmp_path / 'empty'}"
    )
    for override, message in (
        ("workload.num_requests=3", "workload.num_requests: is 3, but the selected trace has 2 requests"),
        ("workload.trace.start_s=5", f"{good}: no row lies from start_s to end_s; the trace ends at 1 s"),
        ("workload.trace.time_scale=-1", "workload.trace.time_scale: must be greater than 0 (got -1)"),
        ("workload.trace.speed=2", "workload.trace.speed: unknown key"),
        ("workload.preset=azure-conv-2023", "workload: preset has no effect beside trace"),
    ):
        assert message in refusal(tmp_path, None, [override], f"csv:{good}")
