"""Whether the files of a run are as they were written: of its results folder, and of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pimserve.cluster.base.checksums import SUMS_FILE, DamageError, Finding, check_folder
from pimserve.cluster.base.files import is_draft
from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.run.checkpoint_files import (
    LOCK_FILE,
    OURS,
    SPANS_FILE,
    STATE_FILE,
    TARGET_FILE,
    check_commands,
    read_state,
    read_target,
)
from pimserve.cluster.run.command_log import COMMANDS_FILE, Entry, parse_commands
from pimserve.cluster.run.results import check_spans
from pimserve.errors import InputError

SUMMARY_FILE = "summary.json"
MADE_LATER = frozenset({"report.html", "timeline.json"})
"""What `pimserve report` and `pimserve timeline` write into a results folder, which has no checksums of them."""


@dataclass(frozen=True)
class Verdict:
    """What became of a folder.

    Args:
        folder: its path.
        kind: what it holds.
        checked: files whose checksums were compared.
        findings: what is wrong; nothing where all is as it was written.
    """

    folder: str
    kind: Literal["results", "checkpoint", "sweep"]
    checked: int
    findings: Sequence[Finding]


def is_results(folder: Path) -> bool:
    """Whether a folder is one of results."""
    return any((folder / name).is_file() for name in (SUMMARY_FILE, SUMS_FILE))


def verify_results(folder: Path) -> Verdict:
    """Compare the files of a results folder with their checksums."""
    try:
        checked, findings = check_folder(folder, later=MADE_LATER)
    except FileNotFoundError:
        return Verdict(str(folder), "results", 0, [_without_checksums(folder)])
    return Verdict(str(folder), "results", checked, findings)


def _without_checksums(folder: Path) -> Finding:
    """What to say of results without a list: lost, or written by a version that kept none."""
    simulator = None
    with suppress(OSError, ValueError, AttributeError):
        simulator = json.loads((folder / SUMMARY_FILE).read_bytes()).get("simulator")
    if isinstance(simulator, dict) and "plugins" not in simulator:
        version = simulator.get("version", "")
        message = f"was written by an earlier pimserve ({version}), which kept no checksums: nothing can be verified"
        return Finding(str(folder), "unchecked", message)
    return Finding(str(folder / SUMS_FILE), "missing", "is not there, so that no file can be verified")


def verify_checkpoint(folder: Path) -> Verdict:
    """Compare all that a run would go on with from a folder of checkpoints with its checksums.

    Raises:
        InputError: a run is at work there.
    """
    if (folder / LOCK_FILE).exists():
        lock = take_lock(folder / LOCK_FILE)
        if lock is None:
            raise InputError(str(folder), "is in use by a run: its files change")
        lock.close()
    findings: list[Finding] = []
    files = [name for name in (TARGET_FILE, COMMANDS_FILE, STATE_FILE) if (folder / name).exists()]
    header: dict[str, Any] = {"commands": 0, "commands_crc32": 0, "span_rows": 0}
    with _noting(findings):
        read_target(folder)
    with _noting(findings):
        header = read_state(folder)[0] if STATE_FILE in files else header
    with _noting(findings):
        check_commands(folder / COMMANDS_FILE, _commands(folder / COMMANDS_FILE), header)
    with _noting(findings):
        if header["span_rows"]:
            check_spans(folder / SPANS_FILE, header["span_rows"], header["span_sha256"])
            files.append(SPANS_FILE)
    findings.extend(
        Finding(str(entry), "unknown", "is none of the files of a checkpoint")
        for entry in sorted(folder.iterdir())
        if entry.name not in OURS and not is_draft(entry.name)
    )
    return Verdict(str(folder), "checkpoint", len(files), findings)


def _commands(file: Path) -> list[Entry]:
    """Commands that were taken; what comes after the last whole one, no one was told of."""
    return parse_commands(file.read_bytes(), file)[0] if file.exists() else []


@contextmanager
def _noting(findings: list[Finding]) -> Iterator[None]:
    """Note what the block finds wrong."""
    try:
        yield
    except DamageError as error:
        findings.append(Finding(error.where, error.problem, error.message))
    except InputError as error:
        findings.append(Finding(error.where, "damaged", error.message))
