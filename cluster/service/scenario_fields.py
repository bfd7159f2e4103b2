"""What is wrong with a scenario, in terms of the request that has it: the field that says it, and the key in there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pimserve.cluster.base.rpc.statuses import RequestError, violations
from pimserve.errors import InputError, shortened

DOCUMENT = "scenario"  # how errors name the document itself
_YAML, _TRACE = "scenario.yaml", "scenario.trace"


def request_error(error: InputError, overrides: Sequence[str], trace: str) -> RequestError:
    """An error of a scenario (`ScenarioDocument`) as one of its fields, such as "scenario.yaml: cluster.replicas".

    Args:
        error: of the scenario.
        overrides: that the request has.
        trace: likewise; may be empty.
    """
    return RequestError([(_field(path, wrong, overrides, trace), wrong) for path, wrong in violations(error)])


def _field(path: str, wrong: str, overrides: Sequence[str], trace: str) -> str:
    if path == "--trace":
        return _TRACE
    for number, override in enumerate(overrides):
        if path == f"--set {shortened(override)}":
            return f"scenario.overrides[{number}]"
    for number, override in reversed(list(enumerate(overrides))):  # the last one is what counts
        if _of(path, wrong, override.partition("=")[0].strip()):
            return f"scenario.overrides[{number}]: {path}"
    if trace and path.startswith("workload.trace"):
        return f"{_TRACE}: {path}"
    if line := re.fullmatch(rf"{DOCUMENT}(:\d+)?", path):
        return f"{_YAML}{line[1] or ''}"
    return f"{_YAML}: {path}" if path else _YAML


def _of(path: str, wrong: str, key: str) -> bool:
    """Whether it is an override of that key that is wrong."""
    within = path == key or path.startswith((f"{key}.", f"{key}["))
    return within or (key.startswith(f"{path}.") and wrong.startswith("unknown key"))
