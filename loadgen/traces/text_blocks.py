"""The text of a file in blocks of whole lines."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

from pimserve.errors import InputError
from pimserve.loadgen.traces.trace_files import Member

BLOCK_BYTES = 1 << 20  # read at once; no more than a line may have
MAX_LINE_BYTES = 1 << 20
"""Longest line; the longest prompt (10 million tokens) as Mooncake's blocks of 512 takes a quarter of that."""


@dataclass(frozen=True)
class TextBlock:
    """Some lines of a file, joined by line feeds, the last of them not empty; and the empty lines before them."""

    empty_lines: int
    text: str


def text_blocks(member: Member, enough: Callable[[], bool]) -> Iterator[TextBlock]:
    """The text of a file in blocks of whole lines, without empty lines at its end.

    However large the file is, or what it is compressed from: no more than a block and a line of it is held.

    Args:
        member: the file.
        enough: whether no further block is wanted; asked before each.

    Raises:
        InputError: it cannot be read, or has a line of more than `MAX_LINE_BYTES`.
    """
    lines = empty = 0
    for data in _byte_blocks(member, enough):
        try:
            text = data.decode("utf-8-sig" if lines == 0 else "utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = lines + data.count(b"\n", 0, error.start) + 1
            raise InputError(f"{member.place}:{line}", f"byte 0x{data[error.start]:02x} is not UTF-8 text") from None
        lines += data.count(b"\n")
        body = text.rstrip("\n")
        ends = len(text) - len(body)
        if not body:
            empty += ends
            continue
        yield TextBlock(empty, body)
        empty = ends - 1


def lines_of(blocks: Iterable[TextBlock]) -> Iterator[str]:
    """Their lines, one by one."""
    for block in blocks:
        yield from repeat("", block.empty_lines)
        yield from block.text.split("\n")


def _byte_blocks(member: Member, enough: Callable[[], bool]) -> Iterator[bytes]:
    """The bytes of a file, cut behind line feeds."""
    lines, rest = 0, b""
    while not enough():
        read = member.content.read(BLOCK_BYTES)
        data = rest + read
        first = data.find(b"\n")
        if (len(data) if first < 0 else first) > MAX_LINE_BYTES:
            raise InputError(f"{member.place}:{lines + 1}", f"the line is longer than {MAX_LINE_BYTES:,} bytes")
        end = data.rfind(b"\n") + 1 if read else len(data)
        lines += data.count(b"\n")
        if end:
            yield data[:end]
        rest = data[end:]
        if not read:
            return
