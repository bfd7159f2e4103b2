"""Comparisons of summaries that somebody changed, and of scenarios that are no scenarios: figures, or a message."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pimserve.cluster.cli.comparison_report import comparison_report
from pimserve.cluster.cli.terminal import console
from pimserve.cluster.run.compare import compare
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import run

JUNK = (None, True, -1, 10**400, 1e308, "x", [], [1], {}, {"x": 1})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "good"
    run(prepare(load_scenario(None, ["workload.num_requests=5"])), folder)
    return folder


def paths(document: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in document.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from paths(value, (*above, key))


def compared(*places: Path) -> None:
    """Both ways of telling; only an InputError may stop them."""
    try:
        comparison = compare(places)
        json.dumps(comparison.document(), allow_nan=False)
        with Path("/dev/null").open("w") as nowhere:
            Console(file=nowhere, width=80).print(comparison_report(comparison, console(nowhere)))
    except InputError:
        pass


@pytest.mark.medium
@pytest.mark.parametrize("scenarios", [True, False])
def test_any_figure_may_be_anything(good: Path, tmp_path: Path, scenarios: bool) -> None:
    summary = json.loads((good / "summary.json").read_text())
    (tmp_path / "bad").mkdir()
    if scenarios:
        (tmp_path / "bad" / "scenario.yaml").write_bytes((good / "scenario.yaml").read_bytes())
    every = [(path, JUNK[number % len(JUNK)]) for number, path in enumerate(paths(summary))]
    if scenarios:  # then what else the summary says matters less
        every = [(path, junk) for path, junk in every if len(path) == 1]
    for number, (path, junk) in enumerate(every):
        changed = copy.deepcopy(summary)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = junk
        (tmp_path / "bad" / "summary.json").write_text(json.dumps(changed))
        compared(*((good, tmp_path / "bad") if number % 2 else (tmp_path / "bad", good)))


@pytest.mark.parametrize(
    "text",
    [
        "1: 2",
        "run: {1: x, null: y}",
        "run: [1]",
        "model: {name: {a: 1}}",
        "{}",
        "slo: 1",
        "name: a\x07b",
        "a: 2000-13-45",
    ],
)
def test_any_scenario_may_be_anything(good: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "summary.json").write_bytes((good / "summary.json").read_bytes())
    (tmp_path / "bad" / "scenario.yaml").write_text(text)
    compared(good, tmp_path / "bad")


def test_what_holds_itself_is_refused(tmp_path: Path) -> None:
    for number, text in enumerate(["model: &a {preset: *a}", "run: &a [*a]", "x: &a {y: &b {z: *a}}"]):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        with pytest.raises(InputError, match=r"\*a is within what it stands for"):
            load_scenario(file)
