"""Files that hold traces: where they are, and what is in them, decompressed as it is read.

A trace is a file, a folder of files, or an archive of them (tar). Each may be compressed, by gzip or zstd.
"""

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Self, cast

from pimserve.errors import InputError, shortened
from pimserve.loadgen.traces.zstd_stream import ZstdStream

TRACES_ENV = "PIMSERVE_TRACES"
_DEFAULT_TRACES = "../shared/traces"
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_TAR_MAGIC = slice(257, 262)
_HEAD_BYTES = 1 << 16  # by which a format is recognised
_MOST_FILES = 100_000


def find_trace(text: str) -> Path:
    """Resolve a trace's path: as given, else inside the directory $PIMSERVE_TRACES."""
    path = Path(text)
    directory = Path(os.environ.get(TRACES_ENV) or _DEFAULT_TRACES)
    with _readable(shortened(text)):  # a path may be too long to ask for
        if path.exists():
            return path
        if (directory / path).exists():
            return directory / path
    raise InputError(text, f"no such file, neither here nor in {directory} (set by {TRACES_ENV})")


def file_digest(path: Path) -> str:
    """sha256 of a file, or of the names and digests of a folder's files; read once, however many runs use it.

    Raises:
        InputError: it cannot be read.
    """
    with _readable(path):
        if path.is_dir():
            files = (f"{name}\0{file_digest(file)}\n" for name, file in _files_below(path))
            return hashlib.sha256("".join(files).encode()).hexdigest()
        status = path.stat()
        return _digest(path, status.st_size, status.st_mtime_ns)


@cache
def _digest(path: Path, _size: int, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _readable(place: object, stream: str = "") -> Iterator[None]:
    """Tell what is wrong with a file at `place`, compressed as `stream` says."""
    try:
        yield
    except EOFError:
        raise InputError(str(place), f"the {stream} stream ends too early: the file is cut short") from None
    except tarfile.TarError as error:
        raise InputError(str(place), f"the archive is cut short or damaged: {error}") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(str(place), f"the gzip stream is damaged: {error}") from None
    except OSError as error:
        raise InputError(str(place), f"cannot be read: {error.strerror or error}") from None
    except Exception as error:
        if stream != "zstd" or isinstance(error, InputError):
            raise
        raise InputError(str(place), f"the zstd stream is damaged: {error}") from None


class Content:
    """What a file holds, decompressed.

    Args:
        place: of the file, for messages.
        file: its bytes, as they are stored.
    """

    def __init__(self, place: str, file: IO[bytes]) -> None:
        self._place = place
        with _readable(place):
            stored = file if hasattr(file, "peek") else io.BufferedReader(cast("io.RawIOBase", file))
            head = stored.peek(4)[:4]
        self._stream = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
        self._file = _decompressed(stored, self._stream)

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer at the end; all of them if the size is negative.

        Raises:
            InputError: the file cannot be read, is damaged or cut short.
        """
        with _readable(self._place, self._stream):
            return self._file.read(size)


def _decompressed(stored: IO[bytes], stream: str) -> IO[bytes]:
    if stream == "zstd":
        return io.BufferedReader(ZstdStream(stored))
    return cast("IO[bytes]", gzip.GzipFile(fileobj=stored)) if stream else stored


@dataclass(frozen=True)
class Member:
    """A file of a trace: the trace itself, or one of its folder or archive.

    `name`: in the folder or archive; a lone file's own. `place`: for messages. `content`: to be read before the next
    member is asked for. `path`: where it is stored; None in an archive.
    """

    name: str
    place: str
    content: Content
    path: Path | None = None


class _Header(tarfile.TarInfo):
    """Of a file in an archive, at whose end a header of zeros must be: else the rest would be missing unnoticed."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        """Raises ReadError unless the header is good; EOFHeaderError at the end."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def members(path: Path) -> Iterator[Member]:
    """The files of a trace: a folder's in order of their names, numbers in these as such; an archive's in its order.

    Hidden files, and links that lead out of the folder, are passed over.

    Raises:
        InputError: one cannot be read; as does what is read of them.
    """
    if path.is_dir():
        for name, file in _files_below(path):
            with _readable(file), file.open("rb") as raw:
                yield Member(name, str(file), Content(str(file), raw), file)
        return
    archive = _is_archive(path)
    with _readable(path), path.open("rb") as raw:
        content = Content(str(path), raw)
        if not archive:
            yield Member(path.name, str(path), content, path)
            return
        with tarfile.open(fileobj=cast("IO[bytes]", content), mode="r|", tarinfo=_Header) as tar:
            for info in tar:
                file_of = tar.extractfile(info) if info.isreg() else None
                if file_of is not None and not _hidden(info.name):
                    place = f"{path}:{info.name}"
                    yield Member(info.name, place, Content(place, file_of))


def members_named(path: Path, ending: str, passed_over: list[str] | None = None) -> Iterator[Member]:
    """A lone file whatever its name, else those of a folder or archive that end so, or so and compressed.

    Names of others are added to `passed_over`, as far as one comes.

    Raises:
        InputError: as `members` does; or there is none.
    """
    found = False
    for member in members(path):
        if member.path == path or is_named(member.name, ending):
            found = True
            yield member
        elif passed_over is not None:
            passed_over.append(member.name)
    if not found:
        raise InputError(str(path), f"holds no file that ends in {ending}")


def names_in(folder: Path) -> list[str]:
    """Names of a folder's files, in order."""
    return [name for name, _ in _files_below(folder)]


def is_named(name: str, ending: str) -> bool:
    """Whether a file's name ends so, or so and compressed."""
    return re.sub(r"\.(gz|zst|zstd)$", "", name.lower()).endswith(ending)


def _is_archive(path: Path) -> bool:
    with _readable(path), path.open("rb") as raw:
        return Content(str(path), raw).read(_TAR_MAGIC.stop)[_TAR_MAGIC] == b"ustar"


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def _files_below(folder: Path) -> list[tuple[str, Path]]:
    """(name, file) of a folder, in order."""
    root, found = folder.resolve(), []
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if not _hidden(name) and file.is_file() and file.resolve().is_relative_to(root):
            found.append((name, file))
        if len(found) > _MOST_FILES:
            raise InputError(str(folder), f"holds more than {_MOST_FILES} files")
    return sorted(found, key=lambda each: _in_order(each[0]))


def _in_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


@dataclass(frozen=True)
class Head:
    """The beginning of a member, by which its format is recognised: up to 64 KiB, and whether that is all of it.

    `alone`: it is the trace itself.
    """

    name: str
    data: bytes
    whole: bool
    alone: bool = False

    @property
    def shown(self) -> str:
        """The first line for a message, at most 80 characters; the first bytes of what is no text."""
        line = self.first_line[:80]
        if line.replace("\t", " ").isprintable() and "\N{REPLACEMENT CHARACTER}" not in line:
            return repr(line)
        return f"the bytes {self.data[:8].hex(' ')}, no text in UTF-8"

    @property
    def first_line(self) -> str:
        """As text; what is no UTF-8 is replaced."""
        return self.data.decode("utf-8-sig", "replace").partition("\n")[0].rstrip("\r")


def heads(path: Path, most: int) -> list[Head]:
    """Of the first `most` members. Raises InputError as `members` does."""
    found: list[Head] = []
    for member in members(path):
        data = member.content.read(_HEAD_BYTES + 1)
        found.append(Head(member.name, data[:_HEAD_BYTES], len(data) <= _HEAD_BYTES, member.path == path))
        if len(found) == most:
            break
    return found
