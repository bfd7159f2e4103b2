"""`pimserve validate gpu` as a user runs it, on small files of one's own."""

import json

import pytest

from pimserve.cluster.validation.gpu_rows import REFERENCE_ENV
from tests.command import pimserve
from tests.validation.gpu_example import GEMM, LLAMA, OPERATORS, QUEUED, write

pytestmark = pytest.mark.e2e


def validate(folder, *arguments):
    return pimserve(folder, "validate", "gpu", *arguments)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """Rows of every operator, each taking exactly what is predicted for it."""
    folder = tmp_path_factory.mktemp("predicted")
    path = write(folder, "raw.json", {"rows": OPERATORS})
    found = json.loads(validate(folder, "--measured", path, "--json").stdout)["operators"]
    return [{**row, "time_us": each["predicted_us"]} for row, each in zip(OPERATORS, found, strict=True)]


def test_help_names_the_files(tmp_path):
    shown = validate(tmp_path, "--help").stdout
    assert "--measured" in shown
    assert "--served" in shown
    assert "PIMSERVE_REFERENCE" in shown


def test_operators_without_errors_hold_all_limits(tmp_path, predicted):
    done = validate(tmp_path, "--measured", write(tmp_path, "mine.json", {"rows": predicted}))
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "6 timed operators, error in %"
    assert "gemm bf16 1 0.0 0.0 +0.0 +0.0 rows[0]" in (" ".join(line.split()) for line in lines)
    assert "served" not in done.stdout
    assert lines[-1] == "7 of 7 limits held; 6 of 6 rows predicted"


def test_a_miss_is_shown_and_is_exit_code_1(tmp_path, predicted):
    slow = {**predicted[0], "time_us": 2 * predicted[0]["time_us"]}
    done = validate(tmp_path, "--measured", write(tmp_path, "mine.json", {"rows": [slow, *predicted[1:]]}))
    assert done.returncode == 1
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "gemm bf16 median 1 50.0 % 6.0 % missed" in lines
    assert "gemm bf16 1 50.0 50.0 -50.0 -50.0 rows[0]" in lines


def test_rows_that_are_not_covered_are_listed(tmp_path):
    unknown = [{**GEMM, "gpu": "MI300X"}, {**GEMM, "backend": "sglang"}, {**GEMM, "op": "convolution"}]
    done = validate(tmp_path, "--measured", write(tmp_path, "mine.json", {"rows": unknown}))
    assert done.returncode == 1
    text = " ".join(done.stdout.split())
    assert "3 rows not covered" in text
    assert "GPU 'MI300X' is not in the catalogue" in text
    assert "backend 'sglang' was not measured (there are vllm, trtllm) (rows[1])" in text
    assert "operator 'convolution' is unknown" in text
    assert text.endswith("nothing could be predicted; 0 of 3 rows predicted")


def test_served_rows_and_anchors(tmp_path):
    path = write(tmp_path, "mine.json", {"served": {"rows": [LLAMA]}, "anchors": [QUEUED]})
    first = json.loads(validate(tmp_path, "--served", path, "--json").stdout)
    (row,) = first["served"]
    assert row["ours"]["tpot_ms"] == pytest.approx(LLAMA["tpot_ms"] * (1 + row["errors"]["tpot"]))
    assert first["limits"][0]["name"] == "llama-3.1-70b on H100 vllm, TPOT"
    same = {**LLAMA, "ttft_ms": row["ours"]["ttft_ms"], "tpot_ms": row["ours"]["tpot_ms"]}
    path = write(tmp_path, "mine.json", {"served": {"rows": [same]}, "anchors": [QUEUED]})
    done = validate(tmp_path, "--served", path)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "H100 vllm fp8 1 0.0 0.0 +0.0 0.0 0.0 +0.0 0.0 0.0 +0.0" in lines
    assert any(line.startswith("queued, llama-3.1-70b 1 ") for line in lines)
    assert lines[-1] == "4 of 4 limits held; 2 of 2 rows predicted"


@pytest.mark.slow
def test_many_served_rows_give_the_same_in_several_processes(tmp_path):
    rows = [{**LLAMA, "concurrency": n, "isl": 64, "osl": 8} for n in range(1, 21)]
    path = write(tmp_path, "mine.json", {"served": {"rows": rows}})
    first, second = (validate(tmp_path, "--served", path, "--json").stdout for _ in range(2))
    assert first == second
    found = json.loads(first)["served"]
    assert [each["concurrency"] for each in found] == list(range(1, 21))
    alone = write(tmp_path, "one.json", {"served": {"rows": rows[6:7]}})
    assert json.loads(validate(tmp_path, "--served", alone, "--json").stdout)["served"][0]["ours"] == found[6]["ours"]


def test_mistakes_are_explained(tmp_path, monkeypatch):
    path = write(tmp_path, "mine.json", {"rows": [GEMM, {**GEMM, "time_us": -1}]})
    done = validate(tmp_path, "--measured", path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {path}: rows[1].time_us: must be greater than 0")
    absent = validate(tmp_path, "--served", "absent.json")
    assert absent.returncode == 2
    assert "absent.json: cannot be read: No such file or directory" in absent.stderr
    monkeypatch.setenv(REFERENCE_ENV, str(tmp_path))
    no_reference = validate(tmp_path)
    assert no_reference.returncode == 2
    assert "name one with --measured FILE" in no_reference.stderr
