"""Files that hold traces: where they are, what is in them."""

import gzip
import hashlib
import os
import zlib
from functools import cache
from pathlib import Path

from pimserve.errors import InputError

TRACES_ENV = "PIMSERVE_TRACES"
_DEFAULT_TRACES = "../shared/traces"


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


def read_text(path: Path) -> str:
    """The text of a file, plain or gzip-compressed, its lines ended by a line feed."""
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except IsADirectoryError:
        raise InputError(str(path), "is a directory; a trace is a file, plain or gzip-compressed") from None
    except EOFError:
        raise InputError(str(path), "the gzip stream ends too early: the file is cut short") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(str(path), f"the gzip stream is damaged: {error}") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}", f"byte 0x{data[error.start]:02x} is not UTF-8 text") from None
