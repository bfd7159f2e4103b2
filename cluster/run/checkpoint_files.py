"""The files of a folder of checkpoints, read with their checksums compared.

The state file is a line of JSON (version, scenario, sizes, and checksums of executed steps, commands and itself), the
state as JSON, and the request table. A flipped byte in any of it, or in what it speaks of, is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.base.checksums import DamageError, Problem
from pimserve.cluster.base.files import write_bytes
from pimserve.cluster.run.command_log import COMMANDS_FILE, Entry, checksum
from pimserve.scheduler.requests import DTYPE

VERSION = 36
STATE_FILE, SPANS_FILE, TARGET_FILE, LOCK_FILE = "checkpoint", "steps.npy", "target.json", "lock"
RESULTS = "unfinished"
OURS = frozenset({STATE_FILE, COMMANDS_FILE, SPANS_FILE, TARGET_FILE, LOCK_FILE, RESULTS})


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of checkpoints: of a run that has not finished, as none are left of others."""
    return any((folder / name).is_file() for name in (STATE_FILE, TARGET_FILE))


def not_ended(folder: Path) -> str:
    """What is said of a folder of checkpoints where results were asked for."""
    return f"checkpoints of a run that has not ended; the command that began it, with --checkpoint {folder}, goes on"


def write_state(
    folder: Path,
    state: dict[str, Any],
    rows: NDArray[Any],
    *,
    scenario: str,
    spans: tuple[int, str],
    commands: Sequence[Entry],
) -> None:
    """Write the state file.

    Args:
        folder: of checkpoints.
        state: as JSON can hold it.
        rows: of the request table.
        scenario: its digest.
        spans: rows of executed steps so far, and their sha256.
        commands: so far.
    """
    document = json.dumps(state).encode()
    table = np.ascontiguousarray(rows).view(np.uint8).data  # no copy: others wait for this thread meanwhile
    header = {
        "format": "pimserve checkpoint",
        "version": VERSION,
        "scenario": scenario,
        "span_rows": spans[0],
        "span_sha256": spans[1],
        "commands": len(commands),
        "commands_crc32": checksum(commands),
        "state_bytes": len(document),
        "table_rows": len(rows),
    }
    line = json.dumps({**header, "sha256": _sha256(header, document, table)}).encode()
    write_bytes(folder / STATE_FILE, line, b"\n", document, table)


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any], NDArray[Any]]:
    """What the state file's first line says, the state, and the request table.

    Raises:
        FileNotFoundError: there is none.
        DamageError: it is damaged, or of another version.
    """
    file = folder / STATE_FILE
    line, _, payload = file.read_bytes().partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != "pimserve checkpoint":
        raise DamageError(str(file), "is no checkpoint of pimserve")
    if header.get("version") != VERSION:
        version = header.get("version")
        remedy = "go on with the pimserve that wrote it, or remove it to run from the start"
        raise DamageError(str(file), f"has version {version!r}; this pimserve reads {VERSION}: {remedy}", "unchecked")
    as_written = json.dumps(header).encode() == line
    if header.pop("sha256", None) != _sha256(header, payload) or not as_written:
        raise DamageError(str(file), "is damaged: its checksum differs; remove it to run from the start")
    split = header["state_bytes"]
    return header, json.loads(payload[:split]), np.frombuffer(payload[split:], DTYPE, header["table_rows"]).copy()


def _sha256(header: dict[str, Any], *content: bytes | memoryview) -> str:
    """Checksum of a checkpoint: of its header, without the checksum itself, and of all that follows."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for part in content:
        digest.update(part)
    return digest.hexdigest()


def check_commands(file: Path, commands: Sequence[Entry], header: dict[str, Any]) -> None:
    """See that the commands that a state knows of are all there.

    Raises:
        DamageError: they are not.
    """
    known = header["commands"]
    if len(commands) < known:
        what: tuple[str, Problem] = ("cut short", "damaged") if file.exists() else ("missing", "missing")
        raise DamageError(str(file), f"is {what[0]}: its checkpoint has {known} commands", what[1])
    if checksum(commands[:known]) != header["commands_crc32"]:
        raise DamageError(str(file), "is damaged: its commands are not those of its checkpoint")


def write_target(folder: Path, scenario: str, results: Path) -> None:
    """Note where the results of a scenario, known by its digest, will be."""
    write_bytes(folder / TARGET_FILE, _target(scenario, str(results.absolute())))


def target_of(folder: Path, scenario: str) -> Path | None:
    """The results folder that a scenario, known by its digest, had when it was interrupted; None for a fresh run.

    Raises:
        DamageError: the file that says so is damaged.
    """
    target = read_target(folder)
    return target[1] if target is not None and target[0] == scenario else None


def read_target(folder: Path) -> tuple[str, Path] | None:
    """The digest of a scenario, and its results folder; None where the run did not come so far.

    Raises:
        DamageError: the file is damaged, or of another version.
    """
    file = folder / TARGET_FILE
    try:
        content = file.read_bytes()
    except OSError:
        return None
    with suppress(ValueError, KeyError, TypeError):
        document = json.loads(content)
        if content == _target(document["scenario"], document["results"]):
            return document["scenario"], Path(document["results"])
    raise DamageError(str(file), "is damaged, or was written by another version of pimserve")


def _target(scenario: str, results: str) -> bytes:
    document = {"scenario": scenario, "results": results}
    digest = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    return (json.dumps({**document, "sha256": digest}, indent=2) + "\n").encode()
