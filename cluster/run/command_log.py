"""commands.jsonl: what a run was told while it went, a line of JSON for each command (docs/results.md has the fields).

A line ends with `crc32`, in 8 hexadecimal digits: CRC-32 of the line up to there, begun with that of the line before.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pimserve.cluster.base.files import naming
from pimserve.errors import InputError, shortened, validation_error

COMMANDS_FILE = "commands.jsonl"
_CHECKED = re.compile(rb'(\{.*), "crc32": "([0-9a-f]{8})"\}')

Entry = tuple[int, dict[str, Any]]
"""When a command took effect, fs of simulated time, and the command as `command_document` has it."""

_Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
_Tokens = Annotated[list[_Count], Field(min_length=1)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    at_fs: int = Field(
        gt=0, description="fs of simulated time at which it took effect: between two steps of each replica"
    )
    command: str


class ChangeSchedulerLine(_Line):
    """Settings of the scheduler for the rest of the run; null leaves one as it is."""

    command: Literal["change_scheduler"]
    router: str | None = Field(None, description="of requests that arrive later")
    max_num_seqs: _Count | None = Field(None, description="requests that run at once on a replica")
    max_num_batched_tokens: _Count | None = Field(None, description="tokens of one step")


class ScaleRateLine(_Line):
    """Requests of the workload that have not arrived yet come `factor` times as fast."""

    command: Literal["scale_rate"]
    factor: float = Field(gt=0, allow_inf_nan=False, description="of the rate")


class InjectLine(_Line):
    """More requests."""

    command: Literal["inject"]
    input_tokens: _Tokens = Field(description="tokens of each prompt")
    output_tokens: _Tokens = Field(description="tokens of each output, as many entries")
    delay_s: float = Field(ge=0, allow_inf_nan=False, description="s from `at_fs` to the arrival of all of them")
    first_request: Annotated[int, Field(ge=0)] | None = Field(
        None, description="number of the first of them, others follow; null: earlier versions named them by their row"
    )

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.input_tokens) != len(self.output_tokens):
            raise ValueError(
                f"output_tokens must have as many entries as input_tokens, {len(self.input_tokens)} "
                f"(got {len(self.output_tokens)})"
            )
        return self


LINES: dict[str, type[_Line]] = {
    "change_scheduler": ChangeSchedulerLine,
    "scale_rate": ScaleRateLine,
    "inject": InjectLine,
}


class CommandLog:
    """Keeps the commands of a run (a `Journal`), and gives those again that it had before.

    Args:
        entries: that it had.
        file: which has these, and to which others are added as they come; None: they are kept in memory only.
    """

    def __init__(self, entries: Sequence[Entry] = (), file: Path | None = None) -> None:
        self.entries = list(entries)
        self._given: dict[int, list[dict[str, Any]]] = {}
        for at_fs, command in sorted(entries, key=_time):
            self._given.setdefault(at_fs, []).append(command)
        self._times = list(self._given)
        self._path = file
        self._file: IO[bytes] | None = None
        self._crc = checksum(entries)

    def taken(self, now_fs: int, command: dict[str, Any]) -> None:
        """Write down a command that took effect."""
        line, self._crc = _encoded((now_fs, command), self._crc)
        if self._path is not None:
            with naming(self._path):
                self._file = self._file or self._path.open("ab")
                self._file.write(line)
                self._file.flush()
                os.fsync(self._file.fileno())
        self.entries.append((now_fs, command))

    def pending(self, now_fs: int) -> tuple[int, list[dict[str, Any]]] | None:
        """Time and commands of the first of those that it had at or after `now_fs`; None: there is none."""
        first = bisect_left(self._times, now_fs)
        return None if first == len(self._times) else (self._times[first], self._given[self._times[first]])

    def routers(self) -> set[str]:
        """Routers that it was told to use."""
        return {name for _, command in self.entries if (name := command.get("router")) is not None}

    def content(self) -> bytes:
        """All of them as commands.jsonl, by time."""
        return encoded(sorted(self.entries, key=_time))

    def close(self) -> None:
        """Close the file, in which all is that anyone was told of."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk
                self._file.close()


def _time(entry: Entry) -> int:
    return entry[0]


def encoded(entries: Iterable[Entry]) -> bytes:
    """The content of commands.jsonl."""
    lines, crc = [], 0
    for entry in entries:
        line, crc = _encoded(entry, crc)
        lines.append(line)
    return b"".join(lines)


def checksum(entries: Iterable[Entry]) -> int:
    """`crc32` of the last of these lines; 0 of none."""
    crc = 0
    for entry in entries:
        _, crc = _encoded(entry, crc)
    return crc


def _encoded(entry: Entry, crc: int) -> tuple[bytes, int]:
    """A line and its `crc32`, given that of the line before."""
    body = json.dumps({"at_fs": entry[0], **entry[1]})[:-1].encode()
    crc = zlib.crc32(body, crc)
    return body + f', "crc32": "{crc:08x}"}}\n'.encode(), crc


def read_commands(file: Path) -> list[Entry]:
    """The commands of a results folder's commands.jsonl; none where there is no such file.

    Raises:
        InputError: a line is damaged, or no command.
    """
    entries, rest = parse_commands(_content(file), file)
    if rest:
        raise InputError(f"{file}:{len(entries) + 1}", "is cut short: a line feed is needed at its end")
    return entries


def recover_commands(file: Path) -> list[Entry]:
    """The commands of a run that was interrupted; what the end of its process cut short is cut off the file.

    Raises:
        InputError: a line is damaged, or no command.
    """
    content = _content(file)
    entries, rest = parse_commands(content, file)
    if rest:
        os.truncate(file, len(content) - rest)
    return entries


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def parse_commands(content: bytes, file: Path) -> tuple[list[Entry], int]:
    """Commands, and how many bytes after the last of them are the beginning of one that was being written.

    Raises:
        InputError: a line is damaged, or no command.
    """
    entries: list[Entry] = []
    crc = 0
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        entry, crc = _parsed(line, crc, f"{file}:{number}")
        entries.append(entry)
    if _CHECKED.fullmatch(rest[:-1]) is not None:  # a whole line, whose line feed became something else
        raise InputError(f"{file}:{len(lines) + 1}", "is damaged: a line feed is needed at its end")
    return entries, len(rest)


def _parsed(line: bytes, crc: int, where: str) -> tuple[Entry, int]:
    checked = _CHECKED.fullmatch(line)
    if checked is not None:  # earlier versions wrote no checksums
        crc = zlib.crc32(checked[1], crc)
        if int(checked[2], 16) != crc:
            raise InputError(where, "is damaged, or does not follow the line before it: its crc32 differs")
    try:
        document = json.loads(line if checked is None else checked[1] + b"}")
    except (ValueError, RecursionError):
        raise InputError(where, "is damaged: it is no JSON") from None
    if not isinstance(document, dict):
        raise InputError(where, "must be a mapping of keys to values")
    command = document.get("command")
    kind = LINES.get(command) if isinstance(command, str) else None
    if kind is None:
        raise InputError(where, f"command: must be one of {', '.join(LINES)} (got {shortened(repr(command))})")
    try:
        kind.model_validate(document)
    except ValidationError as error:
        raise validation_error("", error, kind).at(where) from None
    return (document.pop("at_fs"), document), crc
