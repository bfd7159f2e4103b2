"""Rows beyond what anybody measures: refused, or listed with the reason, and no success where nothing was predicted."""

import re

import pytest

from pimserve.cluster.validation.gpu_anchors import serve_anchor
from pimserve.cluster.validation.gpu_report import gpu_document, gpu_report
from pimserve.cluster.validation.gpu_rows import NotCovered
from pimserve.cluster.validation.gpu_served import serve_row
from pimserve.cluster.validation.validate_gpu import validate_gpu
from pimserve.errors import InputError
from tests.validation.gpu_example import DECODE, GEMM, LLAMA, MLPERF, PREFILL, QUEUED, anchors, served, write


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (GEMM | {"time_us": 1e-320}, "time_us"),
        (GEMM | {"time_us": 1e300}, "time_us"),
        *(
            ({**row, "shape": row["shape"] | {key: 10**30}}, f"shape.{key}")
            for row in (DECODE, PREFILL)
            for key in ("kv_heads", "window_size")
        ),
    ],
)
def test_operators_have_sizes_that_can_be_computed(row, field, tmp_path):
    path = write(tmp_path, "rows.json", {"rows": [row]})
    with pytest.raises(InputError, match=rf"rows\[0\]\.{re.escape(field)}: "):
        validate_gpu(measured=path)


def test_requests_that_are_cut_short_do_not_count(tmp_path):
    (row,) = served(tmp_path, LLAMA | {"isl": 131_000, "osl": 1000, "concurrency": 1})
    with pytest.raises(NotCovered, match="10 of 10 requests are too long for the model or the KV cache"):
        serve_row(row)


@pytest.mark.parametrize(
    ("anchor", "says"),
    [
        (MLPERF | {"system": "1x H100"}, "1 GPUs are no whole number of replicas of 2, as submitted"),
        (MLPERF | {"system": "3x H100"}, "3 GPUs are no whole number of replicas of 2, as submitted"),
        *(
            (row | {"system": f"{count}x H100"}, "has no number of GPUs from 1 to 4096")
            for row in (MLPERF, QUEUED, QUEUED | {"concurrency": 4, "ttft_ms": 20.0, "tpot_ms": 9.0})
            for count in ("0", "5000", "9" * 5000)
        ),
    ],
)
def test_systems_have_a_number_of_gpus_that_makes_sense(anchor, says, tmp_path):
    (row,) = anchors(tmp_path, anchor)
    with pytest.raises(NotCovered, match=re.escape(says)) as caught:
        serve_anchor(row)
    assert len(str(caught.value)) < 300


def test_what_makes_no_scenario_says_why_in_a_line(tmp_path):
    (row,) = anchors(tmp_path, MLPERF | {"samples_per_s": 1e12})
    with pytest.raises(NotCovered) as caught:
        serve_anchor(row)
    assert re.fullmatch(r"workload\.arrival\.rate_per_s: must be .*", str(caught.value))


def test_where_nothing_was_predicted_nothing_has_passed(tmp_path):
    path = write(tmp_path, "rows.json", {"anchors": [QUEUED | {"software": "other"}]})
    report = validate_gpu(served=path)
    assert not report.passed
    assert not gpu_document(report)["passed"]
    assert "nothing could be predicted; 0 of 1 rows predicted" in gpu_report(report).renderables[-1].plain
