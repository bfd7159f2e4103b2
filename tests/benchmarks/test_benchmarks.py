"""The benchmarks run and say what they should; how fast they are is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loadgen.slices import SLICES

RUN = Path(__file__).parents[2] / "benchmarks" / "run.py"

pytestmark = [pytest.mark.e2e]


def bench(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(RUN), "--quick", *arguments], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.deep
def test_every_case_gives_figures():
    figures = json.loads(bench("--json"))
    assert {figure["case"] for figure in figures} == {
        "start", "common", "yardstick", "replicas16", "load", "growth", "mixed", "reference", "aimc",
        *(["prefixes"] if (SLICES / "mooncake_fast25_conversation_0000-1200s.jsonl.gz").exists() else []),
    }  # fmt: skip
    for figure in figures:
        assert 0 < figure["process_s"] <= figure["process_median_s"]
        if figure["loop_s"] is not None and figure["steps"]:
            assert figure["loop_s"] <= figure["loop_median_s"]
            assert figure["steps_per_loop_s"] * figure["loop_s"] == pytest.approx(figure["steps"])
    saturated = [figure["of_capacity"] for figure in figures if figure["what"].endswith(", saturated")]
    assert len(saturated) == 4
    assert all(share > 1 for share in saturated)
    graphs = [figure for figure in figures if figure["case"] == "aimc"]
    assert len(graphs) == 7
    assert all(figure["tasks"] > 1000 for figure in graphs)
    mixed = [figure for figure in figures if figure["case"] == "mixed"]
    assert len(mixed) == 20
    assert all(figure["steps"] > 100 for figure in mixed)
    engine, reference = (figure for figure in figures if figure["case"] == "reference")
    assert engine["steps"] == reference["steps"] > 0


def test_tables_go_between_the_markers_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nafter\n", encoding="utf-8")
    printed = bench("--only", "start", "--write", str(page))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- benchmarks: begin -->\n")
    assert text.endswith("<!-- benchmarks: end -->\nafter\n")
    assert "old" not in text
    assert printed.strip() in text
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert any("pimserve --help" in line for line in lines)


def test_a_page_without_markers_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("mine\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(RUN), "--quick", "--only", "reference", "--write", str(page)],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert page.read_text(encoding="utf-8") == "mine\n"
