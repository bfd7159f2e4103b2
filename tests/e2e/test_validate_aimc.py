"""`pimserve validate aimc` as a user runs it."""

import json
from importlib import resources

import pytest

from tests.command import pimserve

CASES = json.loads((resources.files("pimserve.cluster.validation") / "aimc_cases.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.e2e


def validate(folder, *arguments):
    return pimserve(folder, "validate", "aimc", *arguments)


@pytest.fixture
def file(tmp_path):
    """Write some of the built-in cases as a file of one's own."""

    def write(*cases):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({"cases": cases}), encoding="utf-8")
        return path

    return write


def test_help_names_both_commands(tmp_path):
    shown = pimserve(tmp_path, "validate", "--help").stdout
    assert "duplex" in shown
    assert "aimc" in shown
    assert "--cases" in validate(tmp_path, "--help").stdout


def test_the_built_in_list(tmp_path):
    done = validate(tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["figure", "theirs", "ours", "ratio", "tolerance"]
    assert "open-01-hand-chain" in lines
    assert "paper-scale-moe" in lines
    assert "latency, ns 853 853 1.0000 exact ok" in (" ".join(line.split()) for line in lines)
    assert lines[-1].startswith("19 of 19 cases met; 227 of 227 figures met")
    assert max(map(len, lines)) <= 80


def test_a_miss_is_shown_and_is_exit_code_1(tmp_path, file):
    good, bad = json.loads(json.dumps(CASES["cases"][:2]))
    assert validate(tmp_path, "--cases", file(good)).returncode == 0
    bad["result"]["op_counts"]["mha"] = 2
    done = validate(tmp_path, "--cases", file(good, bad))
    assert done.returncode == 1
    assert "missed: open-02-hand-one-tile" in done.stdout
    assert "mha: 2 there, 1 here" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 of 2 cases met; 23 of 24 figures met (24 by event-driven model)"


def test_what_is_not_given_is_said(tmp_path, file):
    case = json.loads(json.dumps(CASES["cases"][0]))
    case["result"] = {"latency_ns": 853}
    del case["derived"]
    done = validate(tmp_path, "--cases", file(case))
    assert done.returncode == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "FLOPs - 4,205,060 - exact not given" in lines
    assert lines[-1] == "1 of 1 cases met; 1 of 1 figures met (1 by event-driven model)"


def test_json(tmp_path, file):
    case = json.loads(json.dumps(CASES["cases"][0]))
    case["result"]["latency_ns"] = 854
    case["result"]["peak_memory_bytes"] = None
    done = validate(tmp_path, "--cases", file(case), "--json")
    assert done.returncode == 1
    assert done.stderr == ""
    found = {each["quantity"]: each for each in json.loads(done.stdout)}
    assert {each["id"] for each in found.values()} == {"open-01-hand-chain"}
    missed = found["latency, ns"]
    assert (missed["published"], missed["ours"], missed["passed"]) == (854, 853, False)
    assert found["energy, nJ"]["passed"] is True
    assert found["peak memory, B"]["passed"] is None
    assert found["peak memory, B"]["published"] is None
    assert found["peak memory, B"]["ours"] == 2048


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"cases": [', "mine.json:1: not valid JSON"),
        ('{"cases": []}', 'mine.json: must be an object whose key "cases" holds a list of at least one case'),
        ('{"cases": [{"id": "x"}]}', "mine.json: case x.hardware: is missing"),
    ],
)
def test_mistakes_are_explained(tmp_path, text, says):
    (tmp_path / "mine.json").write_text(text, encoding="utf-8")
    done = validate(tmp_path, "--cases", "mine.json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {says}")
    assert "absent.json: cannot read the cases" in validate(tmp_path, "--cases", "absent.json").stderr
