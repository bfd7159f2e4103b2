"""Statistics of errors, their tables, and the limits that they are held to, on made-up results."""

import pytest

from pimserve.cluster.validation.gpu_anchors import AnchorResult
from pimserve.cluster.validation.gpu_errors import (
    AnchorComparison,
    Errors,
    OperatorResult,
    ServedComparison,
    anchor_table,
    grouped,
    operator_tables,
    place,
    regime,
    served_table,
)
from pimserve.cluster.validation.gpu_gates import anchor_gates, operator_gates, served_gates
from pimserve.cluster.validation.gpu_served import ServedResult
from tests.validation.gpu_example import ALL_REDUCE, DECODE, GEMM, LLAMA, MLPERF, MOE, PREFILL, QUEUED
from tests.validation.gpu_example import anchors as read_anchors
from tests.validation.gpu_example import operators as read_operators
from tests.validation.gpu_example import served as read_served


def results(folder, base, errors, bound_us=1.0, **changes):
    """Results of rows that take 100 us, with these errors."""
    rows = read_operators(folder, *({**base, "time_us": 100.0, **changes} for _ in errors))
    return [OperatorResult(row, 100 * (1 + error), bound_us) for row, error in zip(rows, errors, strict=True)]


def gates(found):
    return {(gate.name, gate.statistic): gate for gate in found}


def test_statistics_by_hand():
    found = Errors.of([("a", 0.1), ("b", -0.3), ("c", 0.0), ("d", 0.2), ("e", -0.05)])
    assert (found.n, found.median, found.bias, found.worst, found.worst_at) == (5, 0.1, 0.0, -0.3, "b")
    assert found.p90 == pytest.approx(0.2 + 0.6 * 0.1)


def test_one_row_is_its_own_statistic():
    assert Errors.of([("a", -0.2)]) == Errors(1, 0.2, 0.2, -0.2, -0.2, "a")


def test_groups_come_in_order_and_places_without_the_file():
    assert grouped(["b1", "a1", "b2"], lambda text: (text[0],)) == {("a",): ["a1"], ("b",): ["b1", "b2"]}
    assert place("/data/x: y.json: served.rows[3]") == "served.rows[3]"


def test_limits_are_on_sizes_of_errors(tmp_path):
    held = gates(operator_gates(results(tmp_path, GEMM, [0.059, -0.059, 0.059])))
    assert held["gemm bf16", "median"].passed
    assert held["gemm bf16", "median"].limit == 0.06
    missed = gates(operator_gates(results(tmp_path, GEMM, [0.07, -0.07, 0.01])))
    assert not missed["gemm bf16", "median"].passed
    assert missed["gemm bf16", "p90"].passed


def test_classes_without_rows_have_no_limit(tmp_path):
    found = gates(operator_gates(results(tmp_path, GEMM, [0.0], dtype="fp8_block", backend="trtllm")))
    assert set(found) == {("faster than the hardware", "count")}
    assert not list(operator_gates([]))


def test_routing_decides_the_limit_of_experts(tmp_path):
    assert set(gates(operator_gates(results(tmp_path, MOE, [0.0])))) >= {
        ("moe balanced", "median"),
        ("moe balanced", "p90"),
    }
    skewed = MOE | {"shape": MOE["shape"] | {"routing": "power_law_1.2"}}
    found = gates(operator_gates(results(tmp_path, skewed, [0.11])))
    assert not found["moe power law", "median"].passed
    assert ("moe power law", "p90") not in found


def test_nothing_may_be_faster_than_the_hardware(tmp_path):
    found = gates(operator_gates(results(tmp_path, GEMM, [0.0, -0.5], bound_us=60.0)))
    gate = found["faster than the hardware", "count"]
    assert (gate.value, gate.n, gate.passed) == (1, 2, False)


def served(folder, tpot, ttft, **changes):
    rows = read_served(folder, {**LLAMA, **changes})
    ours = ServedResult(LLAMA["ttft_ms"] * (1 + ttft), LLAMA["tpot_ms"] * (1 + tpot), 100.0, 0, "")
    return [ServedComparison(rows[0], ours)]


def test_served_errors_and_their_limits(tmp_path):
    (one,) = served(tmp_path, 0.1, -0.2)
    request_s = 0.060 + 31 * 0.012
    ours_s = 0.060 * 0.8 + 31 * 0.012 * 1.1
    assert one.errors["throughput"] == pytest.approx(request_s / ours_s - 1)
    found = gates(served_gates([one]))
    name = "llama-3.1-70b on H100 vllm, "
    assert not found[f"{name}TPOT", "median"].passed
    assert found[f"{name}TPOT", "p90"].passed
    assert not found[f"{name}TTFT", "median"].passed
    assert found[f"{name}throughput", "median"].passed
    assert not list(served_gates(served(tmp_path, 0.5, 0.5, model="Qwen/Qwen3-32B")))


def test_anchors_count_where_they_were_read(tmp_path):
    rows = read_anchors(tmp_path, MLPERF, MLPERF | {"confidence": "recalled"}, QUEUED)
    ours = [AnchorResult(row.tokens_per_s * 1.2, None, None, "") for row in rows]
    found = [AnchorComparison(*pair) for pair in zip(rows, ours, strict=True)]
    (gate,) = anchor_gates(found)
    assert (gate.value, gate.passed, gate.note) == (pytest.approx(0.2), False, "")
    assert [labels for labels, _ in anchor_table(found).rows] == [
        ("MLPerf", "llama-2-70b"),
        ("queued", "llama-3.1-70b"),
    ]


def test_known_reasons_stand_with_what_is_missed(tmp_path):
    fp4 = MLPERF | {"precision": "FP4", "system": "1x B200"}
    rows = read_anchors(tmp_path, fp4, fp4 | {"scenario": "MLPerf v4.1 Offline"})
    ours = [AnchorResult(row.tokens_per_s * share, None, None, "") for row, share in zip(rows, (0.7, 1.0), strict=True)]
    missed, held = anchor_gates(AnchorComparison(*pair) for pair in zip(rows, ours, strict=True))
    assert "FP4" in missed.note
    assert held.note == ""


def test_tables_hold_every_row_once(tmp_path):
    bases = (GEMM, DECODE, PREFILL, MOE, ALL_REDUCE)
    found = [result for base in bases for result in results(tmp_path, base, [0.01, 0.02])]
    for table in operator_tables(found):
        assert sum(errors["time"].n for _, errors in table.rows) == len(found)
        assert all(len(labels) == len(table.columns) for labels, _ in table.rows)
    ((labels, errors),) = served_table(served(tmp_path, 0.0, 0.0)).rows
    assert labels == ("llama-3.1-70b", "H100", "vllm", "fp8")
    assert set(errors) == {"tpot", "ttft", "throughput"}


@pytest.mark.parametrize(
    ("base", "shape", "name"),
    [
        (GEMM, {"m": 64}, "m <= 64"),
        (GEMM, {"m": 65}, "m 65 to 512"),
        (GEMM, {"m": 513}, "m > 512"),
        (DECODE, {"batch": 1, "context": 1024}, "KV < 16 MiB"),
        (DECODE, {"batch": 16, "context": 4096}, "KV >= 256 MiB"),
        (PREFILL, {"length": 1024}, "length 1k to 4k"),
        (MOE, {"tokens": 16}, "< 8 per expert, balanced"),
        (MOE, {"tokens": 512, "routing": "power_law_1.2"}, ">= 128 per expert, power law"),
        (ALL_REDUCE, {"bytes": 2**18}, "256 KiB to 16 MiB"),
    ],
)
def test_regimes(tmp_path, base, shape, name):
    (row,) = read_operators(tmp_path, base | {"shape": base["shape"] | shape})
    assert regime(row)[2:] == name
