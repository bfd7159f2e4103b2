"""The files of a results folder as a stream of messages, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from pimserve.cluster.base.rpc.statuses import RefusedError
from pimserve.cluster.base.whole_folders import results_folder
from pimserve.errors import InputError, PimserveError
from pimserve.v1 import simulation_pb2

CHUNK_BYTES = 1 << 20


def send_files(folder: Path, names: Collection[str]) -> Iterator[simulation_pb2.GetResultsResponse]:
    """Files of a folder, all or those of these names: a header, chunks and a digest for each.

    Raises:
        InputError: there is no such file.
        RefusedError: there are none.
    """
    try:
        files = {path.name: path for path in sorted(folder.iterdir())}
    except FileNotFoundError:
        raise RefusedError(grpc.StatusCode.NOT_FOUND, "the results are gone") from None
    if missing := [name for name in names if name not in files]:
        raise InputError("names", f"no file {missing[0]!r} in the results (there are: {', '.join(files)})")
    for name, path in files.items():
        if names and name not in names:
            continue
        digest = hashlib.sha256()
        with path.open("rb") as file:
            header = simulation_pb2.ResultFile(name=name, size=path.stat().st_size)
            yield simulation_pb2.GetResultsResponse(file=header)
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                yield simulation_pb2.GetResultsResponse(chunk=chunk)
        yield simulation_pb2.GetResultsResponse(sha256=digest.hexdigest())


@contextmanager
def receiving(target: Path) -> Iterator[Receiver]:
    """What writes a stream of files into a folder that must not exist, whole or not at all.

    Raises:
        InputError: it exists, or cannot be written.
        PimserveError: the stream ends within a file.
    """
    with results_folder(target, target.name) as (draft, _):
        receiver = Receiver(draft)
        yield receiver
        receiver.end()


class Receiver:
    """Writes a stream of files into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self._file: Path | None = None

    def end(self) -> None:
        """Nothing more comes.

        Raises:
            PimserveError: a file is not whole.
        """
        if self._file is not None:
            raise PimserveError("the server's answer is cut short")

    def take(self, part: simulation_pb2.GetResultsResponse) -> None:
        """Take the next message.

        Raises:
            PimserveError: it does not follow the one before it, or a file arrived damaged.
        """
        kind = part.WhichOneof("part")
        if kind == "file" and self._file is None and Path(part.file.name).name == part.file.name not in {"", ".."}:
            self._file, self._size = self._folder / part.file.name, part.file.size
            self._digest = hashlib.sha256()
            self._file.touch()
        elif kind == "chunk" and self._file is not None:
            with self._file.open("ab") as file:
                file.write(part.chunk)
            self._digest.update(part.chunk)
        elif kind == "sha256" and self._file is not None:
            if self._digest.hexdigest() != part.sha256 or self._file.stat().st_size != self._size:
                raise PimserveError(f"{self._file.name} arrived damaged")
            self._sizes[self._file.name] = self._size
            self._file = None
        else:
            raise PimserveError("the server's answer makes no sense")

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file that has arrived."""
        return dict(self._sizes)
