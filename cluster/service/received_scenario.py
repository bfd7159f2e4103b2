"""Scenarios that come over the wire: read with limits, and without reading the server's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from pimserve.cluster.scenario.document import Scenario, parse_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.cluster.service.scenario_fields import DOCUMENT
from pimserve.errors import InputError, shortened

_TRACE = "workload.trace.path"


def read_scenario(text: str, overrides: Sequence[str], trace: str, traces: Path | None) -> Prepared:
    """The scenario of a request, checked as far as that goes without running it.

    Args:
        text: YAML.
        overrides: "path=value" each.
        trace: PATH or FORMAT:PATH, or empty.
        traces: folder below which traces may lie; None: nowhere.

    Raises:
        InputError: it is not acceptable.
    """
    scenario = parse_scenario(text or "{}", DOCUMENT, overrides, trace or None)
    if scenario.workload.trace is not None:
        scenario = _with_trace(scenario, _allowed(scenario.workload.trace.path, traces))
    return prepare(scenario)


def _allowed(path: str, traces: Path | None) -> Path:
    """A trace, file or folder; what lies elsewhere is as if it were not there, so that nothing is learned of it."""
    if traces is None:
        raise InputError(_TRACE, "this server reads no traces: it was started without --traces")
    root = traces.resolve()
    try:
        file = (root / path).resolve()
        if root in file.parents and (file.is_file() or file.is_dir()):
            return file
    except (OSError, ValueError, RuntimeError):  # too long, a zero in it, a loop of links
        pass
    raise InputError(_TRACE, f"no file {shortened(repr(path))} below the folder of the server's --traces")


def _with_trace(scenario: Scenario, file: Path) -> Scenario:
    assert scenario.workload.trace is not None
    trace = scenario.workload.trace.model_copy(update={"path": str(file)})
    return scenario.model_copy(update={"workload": scenario.workload.model_copy(update={"trace": trace})})


def as_yaml(scenario: Scenario) -> str:
    """The scenario with all defaults and catalogue entries: what is run later does not depend on what changes here."""
    text: str = yaml.dump(
        scenario.resolved(), Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, allow_unicode=True
    )
    return text
