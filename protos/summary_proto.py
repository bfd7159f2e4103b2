"""Generate pimserve/v1/summary.proto from the schema of summaries; fields keep the numbers that they have there.

Run by `make protos`, before the Python modules are generated.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pimserve.cluster.run.summary_message import MessageField, message_fields
from pimserve.cluster.run.summary_schema import Summary
from pimserve.scheduler.sections import Section

FILE = Path(__file__).parent / "pimserve" / "v1" / "summary.proto"
_HEAD = """// The figures of a run, as in its summary.json: the same, typed. What is null there is not set here, and
// left out of maps. Generated from the schema of summaries.

syntax = "proto3";

package pimserve.v1;

import "google/protobuf/struct.proto";

"""
_SCALARS = {int: "int64", float: "double", bool: "bool", str: "string", Any: "google.protobuf.Struct"}
_COLUMNS = 118
Numbers = dict[str, dict[str, int]]


def proto(before: str) -> str:
    """The file.

    Args:
        before: the one that there is, whose numbers are kept; may be empty.
    """
    return _HEAD + "\n".join(_Messages(_numbers(before)).message("Summary", Summary)) + "\n"


class _Messages:
    """Messages of sections, each where it is used first.

    Args:
        numbers: that fields have, by message.
    """

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._written: set[str] = set()

    def message(self, name: str, section: type[Section]) -> Iterator[str]:
        """Lines of the message of a section, and within the outermost one, of those that it uses."""
        outermost = name == "Summary"
        yield from _comment("All figures of a run." if outermost else section.__doc__ or "")
        yield f"message {name} {{"
        if outermost:
            for inner in self._used(section):
                yield from textwrap.indent("\n".join(self.message(inner.__name__, inner)), "  ").splitlines()
                yield ""
        for line in self._lines(name, section):
            yield f"  {line}"
        yield "}"

    def _used(self, section: type[Section]) -> Iterator[type[Section]]:
        """Sections below this one, each once."""
        for field in message_fields(section):
            if field.kind not in _SCALARS and field.kind.__name__ not in self._written:
                self._written.add(field.kind.__name__)
                yield field.kind
                yield from self._used(field.kind)

    def _lines(self, name: str, section: type[Section]) -> Iterator[str]:
        known = self._numbers.get(name, {})
        free = max(known.values(), default=0)
        for field in message_fields(section):
            number = known.get(field.name)
            if number is None:
                free += 1
                number = free
            meaning = field.meaning.replace("null", "not set")
            yield from _comment(f"{meaning}. Unit: {field.unit}." if field.unit else f"{meaning}.")
            yield f"{_type(field)} {field.name} = {number};"


def _type(field: MessageField) -> str:
    kind = _SCALARS.get(field.kind) or field.kind.__name__
    if field.form == "map":
        return f"map<string, {kind}>"
    if field.form == "list":
        return f"repeated {kind}"
    return f"optional {kind}" if field.nullable and field.kind in _SCALARS and field.kind is not Any else kind


def _comment(text: str) -> list[str]:
    text = " ".join(text.split())
    text = text if "_" in text.split(" ")[0] else text[:1].upper() + text[1:]  # a name stays as it is
    return textwrap.wrap(text, _COLUMNS - 4, initial_indent="// ", subsequent_indent="// ")


def _numbers(before: str) -> Numbers:
    """Numbers of fields, by message and name."""
    numbers: Numbers = {}
    inside: list[str] = []
    for line in before.splitlines():
        if begin := re.match(r"\s*message (\w+) \{", line):
            inside.append(begin[1])
        elif re.match(r"\s*\}", line):
            inside.pop()
        elif field := re.match(r"\s*[\w.<>, ]+ (\w+) = (\d+);", line):
            numbers.setdefault(inside[-1], {})[field[1]] = int(field[2])
    return numbers


if __name__ == "__main__":
    FILE.write_text(proto(FILE.read_text(encoding="utf-8") if FILE.exists() else ""), encoding="utf-8")
