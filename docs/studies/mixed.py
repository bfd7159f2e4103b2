"""The study of mixed replicas: `python docs/studies/mixed.py` runs it, and writes mixed.json, its page and pictures.

With --page the page and its pictures are written from mixed.json alone; with --check nothing is, and the exit code is
1 if they would change. --only names models whose runs are made again. Where PIMSERVE_TRACES names a folder with slices
of the Azure traces, the best replicas are held against these too; nothing else needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]  # for when this is not run as a script

from mixed_results import Study, goodput_of  # noqa: E402
from mixed_runs import Figures, cell, copies, sensitivity, traced  # noqa: E402
from mixed_systems import CODE, CONVERSATION, LENGTHS, MODELS, RELAXED, SHAPES, knobs  # noqa: E402

RESULTS = FOLDER / "mixed.json"
VARIED = ("mixtral-8x7b", "deepseek-v3")  # whose assumptions are varied, on Duplex + AIMC
_DIGITS = 6
_COPIES = 4
_TRACED = ("gpu", "duplex", "gpu+aimc", "duplex+aimc")
_TRACES = {
    CONVERSATION: "azure_llm_2023_conv_0000-1800s.csv.gz",
    CODE: "azure_llm_2023_code_0000-1800s.csv.gz",
}


def main() -> int:
    """Run the study, or write its page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page from mixed.json, without runs")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page would change")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    asked = parser.parse_args()
    if not (asked.page or asked.check):
        results = _run(asked.only, asked.jobs)
        RESULTS.write_text(as_text(results), encoding="utf-8")
    from mixed_findings import NotSaidError  # noqa: PLC0415 they need the results
    from mixed_page import files  # noqa: PLC0415

    try:
        made = files(json.loads(RESULTS.read_text(encoding="utf-8")))
    except NotSaidError as error:
        print(f"the page is not written, and mixed_findings.py is to be changed: {error}", file=sys.stderr)
        return 1
    stale = [name for name, text in made.items() if not _is(FOLDER.parent / name, text)]
    for name in stale:
        if not asked.check:
            (FOLDER.parent / name).write_text(made[name], encoding="utf-8")
        print(f"docs/{name} is out of date: run {FOLDER.name}/mixed.py --page" if asked.check else f"wrote docs/{name}")
    return 1 if asked.check and stale else 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def as_text(results: Figures) -> str:
    """JSON, a line for each run of the lists."""
    parts = []
    for key, value in results.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in value) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _run(models: list[str], jobs: int) -> Figures:
    before: Figures = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}

    def kept(part: str) -> list[Figures]:
        return [entry for entry in before.get(part, []) if entry["model"] not in models]

    with get_context("spawn").Pool(jobs, maxtasksperchild=8) as pool:
        cells = kept("cells") + _all(pool, list(_cell_tasks(models)))
        base = {model: _base(cells, model) for model in VARIED if model in models}
        varied = kept("sensitivity") + _all(pool, list(_sensitivity_tasks(base)))
        several = kept("copies") + _all(
            pool,
            [
                partial(copies, model, "duplex+aimc", shape, CONVERSATION, rate, _COPIES)
                for model, (shape, rate) in base.items()
            ],
        )
        replayed = kept("traces") + _all(pool, list(_trace_tasks(cells, models)))
    for part in (cells, varied, several, replayed):
        part.sort(key=lambda entry: list(MODELS).index(entry["model"]))  # stable
    return {"cells": cells, "sensitivity": varied, "copies": several, "traces": replayed}


def _cell_tasks(models: list[str]) -> Iterator[Any]:
    for model in models:
        for traffic in LENGTHS:
            for system, shapes in SHAPES[model].items():
                for number in range(len(shapes)):
                    yield partial(cell, model, system, number, traffic)


def _base(cells: list[Figures], model: str) -> tuple[int, float]:
    """(shape, goodput) of Duplex + AIMC with the highest goodput per mm2 for conversations."""
    found = [
        (
            entry[RELAXED]["goodput"]["rate_per_s"] / entry["mm2"],
            entry["shape"],
            entry[RELAXED]["goodput"]["rate_per_s"],
        )
        for entry in cells
        if (entry["model"], entry["system"], entry["traffic"]) == (model, "duplex+aimc", CONVERSATION)
        and entry[RELAXED]["goodput"]
    ]
    _, shape, rate = max(found)
    return shape, rate


def _trace_tasks(cells: list[Figures], models: list[str]) -> Iterator[Any]:
    """The best shapes for their silicon under the traces themselves, where there are any."""
    if folder := os.environ.get("PIMSERVE_TRACES"):
        study = Study({"cells": cells, "sensitivity": [], "copies": [], "traces": []})
        for model in models:
            for traffic, name in _TRACES.items():
                for system in _TRACED:
                    if best := study.best(model, system, traffic):
                        place = model, system, best["shape"], traffic
                        yield partial(traced, *place, goodput_of(best), Path(folder) / name)


def _sensitivity_tasks(base: dict[str, tuple[int, float]]) -> Iterator[Any]:
    for model, (shape, rate) in base.items():
        yield partial(sensitivity, model, shape, rate, None, "")
        for knob in knobs(model):
            for end in ("low", "high"):
                if getattr(knob, end) is not None:
                    yield partial(sensitivity, model, shape, rate, knob, end)


def _all(pool: Any, tasks: list[Any]) -> list[Figures]:  # noqa: ANN401 of multiprocessing
    """What tasks return, in their order."""
    found = []
    begin = time.monotonic()
    for number, result in enumerate(pool.imap(_do, tasks), 1):
        found.append(rounded(result))
        name = ", ".join(
            str(result[key]) for key in ("model", "system", "shape", "traffic", "knob", "end") if key in result
        )
        print(f"{number}/{len(tasks)} {time.monotonic() - begin:.0f} s: {name}", file=sys.stderr, flush=True)
    return found


def _do(task: Any) -> Figures:  # noqa: ANN401 a partial
    result: Figures = task()
    return result


def rounded(value: Any) -> Any:  # noqa: ANN401 as JSON has it
    """With so many digits as anybody reads."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
