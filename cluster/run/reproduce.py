"""A run once more, from its results folder: the scenario as resolved, and what it was told while it went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pimserve.cluster.run.command_log import COMMANDS_FILE, Entry, read_commands
from pimserve.cluster.run.read_summary import load_document
from pimserve.cluster.run.summary_schema import UnwrittenSummary
from pimserve.cluster.run.verify_run import verify_results
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.errors import InputError, PimserveError
from pimserve.loadgen.traces import trace_digest

_VERSIONS = {"pimserve": "version", "Python": "python", "numpy": "numpy"}  # keys of `simulator`
_OF_THE_MACHINE = {"simulator", "results"}  # parts of a summary that no two runs have in common
_IN_WORDS = {"workload"}  # has the trace's path as it was given; `scenario_digest` tells whether it is the same


@dataclass(frozen=True)
class RecordedRun:
    """What a results folder says of a run, from which it is run again.

    Args:
        folder: of its results.
        prepared: its scenario.
        commands: that it was given.
        summary: as it was written.
        checked: whether the folder has checksums, which were compared; earlier versions wrote none.
    """

    folder: Path
    prepared: Prepared
    commands: Sequence[Entry]
    summary: dict[str, Any]
    checked: bool

    def compare(self, summary: UnwrittenSummary) -> None:
        """See that a replay gave the same digest and figures.

        Raises:
            PimserveError: it did not.
        """
        again = json.loads(json.dumps(summary.document()))
        other = [
            key
            for key, value in self.summary.items()
            if key not in _OF_THE_MACHINE | _IN_WORDS and (key not in again or again[key] != value)
        ]
        if other:
            raise PimserveError(
                f"the replay is not the run of {self.folder}: {', '.join(other)} in summary.json differ; "
                f"it was run with {_made_with(self.summary)}, this one with {_made_with(again)}"
            )


def read_recorded_run(folder: Path) -> RecordedRun:
    """Read a results folder so far as a replay needs it.

    Raises:
        InputError: it is none, a file is damaged, or its trace is missing or another one.
    """
    summary = load_document(folder)
    checked = _check(folder)
    scenario = load_scenario(folder / "scenario.yaml")
    _check_trace(scenario, summary)
    prepared = prepare(scenario)
    if prepared.digest != summary.get("scenario_digest"):
        raise InputError(
            str(folder / "scenario.yaml"),
            f"is not the scenario that was run (scenario_digest in summary.json): it was run with "
            f"{_made_with(summary)}, whose scenarios this pimserve may resolve otherwise",
        )
    return RecordedRun(folder, prepared, read_commands(folder / COMMANDS_FILE), summary, checked)


def _check(folder: Path) -> bool:
    """Whether a folder has checksums; all files that are in their list are as they were written.

    Raises:
        InputError: one is not.
    """
    wrong = [finding for finding in verify_results(folder).findings if finding.problem != "unknown"]
    if all(finding.problem == "unchecked" for finding in wrong):
        return not wrong
    raise InputError("", "\n".join(f"{finding.file}: {finding.message}" for finding in wrong))


def _check_trace(scenario: Scenario, summary: dict[str, Any]) -> None:
    trace = scenario.workload.trace
    if trace is None:
        return
    try:
        actual = trace_digest(trace)
    except InputError as error:
        raise InputError(error.where, f"{error.message}; a replay needs the trace that was run") from None
    recorded = summary["simulator"].get("trace_sha256")
    if recorded is not None and actual != recorded:
        raise InputError(trace.path, f"is not the trace that was run: it has sha256 {actual}, that one had {recorded}")


def _made_with(summary: dict[str, Any]) -> str:
    """Versions of what made a summary, as far as it tells."""
    simulator = summary["simulator"]
    plugins = simulator.get("plugins")
    versions = [f"{what} {simulator.get(key)}" for what, key in _VERSIONS.items()]
    return ", ".join([*versions, *(plugins.values() if isinstance(plugins, dict) else ())])
