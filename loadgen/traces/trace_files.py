"""Files that hold traces: where they are, what is in them."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from itertools import repeat
from pathlib import Path

from pimserve.errors import InputError

TRACES_ENV = "PIMSERVE_TRACES"
_DEFAULT_TRACES = "../shared/traces"
BLOCK_BYTES = 1 << 20  # read at once; no more than a line may have
MAX_LINE_BYTES = 1 << 20
"""Longest line; the longest prompt (10 million tokens) as Mooncake's blocks of 512 takes a quarter of that."""


def find_trace(text: str) -> Path:
    """Resolve a trace's path: as given, else inside the directory $PIMSERVE_TRACES."""
    path = Path(text)
    if path.exists():
        return path
    directory = Path(os.environ.get(TRACES_ENV) or _DEFAULT_TRACES)
    if (directory / path).is_file():
        return directory / path
    raise InputError(text, f"no such file, neither here nor in {directory} (set by {TRACES_ENV})")


def file_digest(path: Path) -> str:
    """sha256 of a file, read once, however many runs of a sweep use it.

    Raises:
        InputError: it cannot be read.
    """
    try:
        status = path.stat()
        return _digest(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None


@cache
def _digest(path: Path, _size: int, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class TextBlock:
    """Some lines of a file, joined by line feeds, the last of them not empty; and the empty lines before them."""

    empty_lines: int
    text: str


def text_blocks(path: Path, enough: Callable[[], bool]) -> Iterator[TextBlock]:
    """The text of a file, plain or gzip-compressed, in blocks of whole lines, without empty lines at its end.

    However large the file is, or what it is compressed from: no more than a block and a line of it is held.

    Args:
        path: the file.
        enough: whether no further block is wanted; asked before each.

    Raises:
        InputError: it cannot be read, or has a line of more than `MAX_LINE_BYTES`.
    """
    lines = empty = 0
    for data in _byte_blocks(path, enough):
        try:
            text = data.decode("utf-8-sig" if lines == 0 else "utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = lines + data.count(b"\n", 0, error.start) + 1
            raise InputError(f"{path}:{line}", f"byte 0x{data[error.start]:02x} is not UTF-8 text") from None
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


def _byte_blocks(path: Path, enough: Callable[[], bool]) -> Iterator[bytes]:
    """The bytes of a file, cut behind line feeds."""
    lines, rest = 0, b""
    try:
        with path.open("rb") as raw, _plain(raw) as file:
            while not enough():
                read = file.read(BLOCK_BYTES)
                data = rest + read
                first = data.find(b"\n")
                if (len(data) if first < 0 else first) > MAX_LINE_BYTES:
                    raise InputError(f"{path}:{lines + 1}", f"the line is longer than {MAX_LINE_BYTES:,} bytes")
                end = data.rfind(b"\n") + 1 if read else len(data)
                lines += data.count(b"\n")
                if end:
                    yield data[:end]
                rest = data[end:]
                if not read:
                    return
    except IsADirectoryError:
        raise InputError(str(path), "is a directory; a trace is a file, plain or gzip-compressed") from None
    except EOFError:
        raise InputError(str(path), "the gzip stream ends too early: the file is cut short") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(str(path), f"the gzip stream is damaged: {error}") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror or error}") from None


def _plain(file: BufferedReader) -> BufferedReader | gzip.GzipFile:
    """What a file holds, decompressed as it is read."""
    return gzip.GzipFile(fileobj=file) if file.peek(2).startswith(b"\x1f\x8b") else file
