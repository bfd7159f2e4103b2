"""SHA256SUMS of a folder, which `sha256sum -c` reads too: written last, when all other files are on the disk.

Its first line, a comment to sha256sum, is the checksum of the others, so that a damaged list is not taken for damaged
files.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pimserve.cluster.base.files import write_bytes
from pimserve.errors import InputError

SUMS_FILE = "SHA256SUMS"
_HEAD = "# sha256 of the lines below: "
_NO_FILE = "is no regular file"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+)")

Problem = Literal["damaged", "missing", "unknown", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file.

    Args:
        file: its path.
        problem: damaged, missing, unknown (nobody wrote it there) or unchecked (an earlier version kept no checksum).
        message: in words.
    """

    file: str
    problem: Problem
    message: str


class DamageError(InputError):
    """A file is not as it was written; `problem` as in `Finding`."""

    def __init__(self, where: str, message: str, problem: Problem = "damaged") -> None:
        super().__init__(where, message)
        self.problem: Problem = problem


def write_checksums(folder: Path, names: Sequence[str] | None = None) -> None:
    """Have files of a folder on the disk, and their checksums beside them; all files, or those of these names."""
    files = sorted(folder.iterdir()) if names is None else [folder / name for name in names]
    lines = []
    for file in files:
        if file.name == SUMS_FILE:
            continue
        with file.open("rb") as content:
            lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {file.name}\n")
            os.fsync(content.fileno())
    body = "".join(lines).encode()
    write_bytes(folder / SUMS_FILE, f"{_HEAD}{hashlib.sha256(body).hexdigest()}\n".encode(), body)


def read_checksums(folder: Path) -> dict[str, str]:
    """sha256 by name of file.

    Raises:
        FileNotFoundError: there is no list.
        DamageError: it is damaged.
    """
    file = folder / SUMS_FILE
    if file.exists() and not file.is_file():
        raise DamageError(str(file), _NO_FILE)
    head, _, body = file.read_bytes().partition(b"\n")
    if head != f"{_HEAD}{hashlib.sha256(body).hexdigest()}".encode():
        raise DamageError(str(file), "is damaged: its first line is not the checksum of the others")
    sums = {}
    for number, line in enumerate(body.decode(errors="replace").splitlines(), start=2):
        entry = _LINE.fullmatch(line)
        if entry is None:
            raise DamageError(f"{file}:{number}", "must be 64 hexadecimal digits, two spaces and the name of a file")
        sums[entry[2]] = entry[1]
    return sums


def check_folder(folder: Path, *, later: Collection[str] = (), folders: bool = False) -> tuple[int, list[Finding]]:
    """Compare the files of a folder with its list; says how many there are in it, and what is wrong.

    Args:
        folder: with a list.
        later: names of files that may have been written there since.
        folders: whether there may be folders in it.

    Raises:
        FileNotFoundError: there is no list.
    """
    try:
        sums = read_checksums(folder)
    except DamageError as error:
        return 0, [Finding(error.where, error.problem, error.message)]
    findings = [finding for name, digest in sums.items() if (finding := _check(folder / name, digest)) is not None]
    for entry in sorted(folder.iterdir()):
        if entry.name in {*sums, SUMS_FILE, *later} or (folders and entry.is_dir()):
            continue
        findings.append(Finding(str(entry), "unknown", f"is not in {SUMS_FILE}"))
    return len(sums), findings


def _check(file: Path, digest: str) -> Finding | None:
    if file.exists() and not file.is_file():  # a pipe, say, of which nothing may ever come
        return Finding(str(file), "damaged", _NO_FILE)
    try:
        with file.open("rb") as content:
            actual = hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError:
        return Finding(str(file), "missing", f"is in {SUMS_FILE}, and not there")
    except OSError as error:
        return Finding(str(file), "damaged", f"cannot be read: {error.strerror}")
    if actual == digest:
        return None
    return Finding(str(file), "damaged", f"has sha256 {actual}, where {SUMS_FILE} has {digest}")
