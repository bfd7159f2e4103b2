"""Files of timed operators and served systems: what is read, and what is refused with its place."""

import pytest

from pimserve.cluster.validation.gpu_rows import REFERENCE_ENV, read_measured, read_served, reference_file
from pimserve.cluster.validation.validate_gpu import validate_gpu
from pimserve.errors import InputError
from tests.validation.gpu_example import GEMM, LLAMA, MLPERF, OPERATORS, QUEUED, anchors, operators, served, write


def changed(row, **changes):
    return {**row, **changes}


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


def test_rows_keep_their_order_and_place(tmp_path):
    rows = operators(tmp_path, *OPERATORS)
    assert [row.op for row in rows] == [row["op"] for row in OPERATORS]
    assert rows[2].where.endswith("measured.json: rows[2]")
    assert rows[0].shape.model_dump() == GEMM["shape"]
    assert rows[0].time_us == 50.0


def test_what_is_unknown_is_read_all_the_same(tmp_path):
    strange = changed(GEMM, op="convolution", shape={"anything": [1]}, gpu="MI300X", backend="onnx", dtype="int3")
    (row,) = operators(tmp_path, strange)
    assert row.shape is None
    report = validate_gpu(write(tmp_path, "strange.json", {"rows": [strange]}))
    assert [each.where for each in report.uncovered] == [f"{tmp_path}/strange.json: rows[0]"]


def test_served_files_may_have_one_part_only(tmp_path):
    assert len(served(tmp_path, LLAMA)) == 1
    assert len(anchors(tmp_path, QUEUED, MLPERF)) == 2


def test_throughput_follows_from_the_latencies_where_it_is_not_given(tmp_path):
    derived, given = served(tmp_path, LLAMA, changed(LLAMA, tokens_per_s_derived=300.0))
    assert derived.tokens_per_s == pytest.approx(4 * 32 / (0.060 + 31 * 0.012))
    assert given.tokens_per_s == 300.0


def test_a_latency_may_be_an_object_with_its_mean(tmp_path):
    (row,) = anchors(tmp_path, MLPERF)
    assert (row.ttft_ms, row.tpot_ms) == (198.3, 123.3)


MALFORMED = [
    (changed(GEMM, time_us=0), "rows[1].time_us: must be greater than 0"),
    (changed(GEMM, time_us="fast"), "rows[1].time_us: must be a number"),
    (changed(GEMM, shape=3), "rows[1].shape: must be an object with the operator's sizes"),
    (changed(GEMM, shape={"m": 0, "n": 8, "k": 8}), "rows[1].shape.m: must be greater than 0"),
    (changed(GEMM, shape={"m": True, "n": 8, "k": 8}), "rows[1].shape.m: must be a whole number"),
    (changed(GEMM, shape={"m": 8, "n": 8}), "rows[1].shape.k: is missing"),
    (without(GEMM, "gpu"), "rows[1].gpu: is missing"),
    ([1, 2], "rows[1]: must be an object"),
]


@pytest.mark.parametrize(("row", "says"), MALFORMED, ids=[says for _, says in MALFORMED])
def test_malformed_operators_are_refused_with_their_place(tmp_path, row, says):
    path = write(tmp_path, "mine.json", {"rows": [GEMM, row]})
    with pytest.raises(InputError) as caught:
        read_measured(path)
    assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"served": {"rows": [changed(LLAMA, osl=1)]}}, "served.rows[0].osl: must be greater than 1"),
        ({"served": {"rows": [without(LLAMA, "tp")]}}, "served.rows[0].tp: is missing"),
        ({"served": {"rows": 3}}, "served.rows: must be a list"),
        ({"served": [LLAMA]}, "served: must be an object with a list `rows`"),
        ({"anchors": [changed(QUEUED, tokens_per_s=-1)]}, "anchors[0].tokens_per_s: must be greater than 0"),
        ({"anchors": [changed(MLPERF, ttft_ms={"mean": "soon"})]}, "anchors[0].ttft_ms: must be a number"),
        ({"rows": [GEMM]}, "must have a list `served.rows` or a list `anchors`"),
    ],
)
def test_malformed_served_files_are_refused_with_their_place(tmp_path, document, says):
    path = write(tmp_path, "mine.json", document)
    with pytest.raises(InputError) as caught:
        read_served(path)
    assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "mine.json: must be a JSON object"),
        ("{", "mine.json:1: not valid JSON"),
        ('{"rows": []}', 'mine.json: must be an object whose key "rows" holds a list of at least one'),
        ('{"rows": ' + "[" * 100_000, "mine.json: not valid JSON"),
        ("\udcff", "mine.json: cannot be read: it is not UTF-8 text"),
    ],
    ids=["a list", "cut off", "no rows", "deep", "not text"],
)
def test_what_is_no_such_file_is_said(tmp_path, text, says):
    path = tmp_path / "mine.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        read_measured(path)
    assert str(caught.value).startswith(f"{tmp_path}/{says}")


def test_absent_reference_data_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setenv(REFERENCE_ENV, str(tmp_path))
    with pytest.raises(InputError, match=rf"measured\.json: no such file; name one with --measured .* {REFERENCE_ENV}"):
        validate_gpu()
    with pytest.raises(InputError, match="--served FILE"):
        reference_file("gpu/end_to_end.json")


def test_repeated_rows_count_once(tmp_path):
    again = changed(GEMM, time_us=60.0, source="another table")
    path = write(tmp_path, "mine.json", {"rows": [GEMM, again, changed(GEMM, dtype="fp8")]})
    report = validate_gpu(path)
    assert [each.reason for each in report.uncovered] == ["repeats rows[0]"]
    assert len(report.operators) == 2
