"""zstd streams, decompressed as they are read."""

import io
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# A block of 4 bytes may stand for 128 KiB, so little is decompressed at once: at most 16 MiB are held.
_CHUNK_BYTES = 512


class ZstdStream(io.RawIOBase):
    """What a zstd file of one frame or several holds.

    Args:
        file: the compressed bytes.

    Raises, when read:
        EOFError: the last frame is cut short.
        zstandard.ZstdError: it is damaged.
    """

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard  # noqa: PLC0415 few traces need it

        self._file = file
        self._frames = zstandard.ZstdDecompressor()
        self._frame = self._frames.decompressobj()
        self._compressed = self._plain = b""
        self._within = False  # a frame has begun and not ended

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Some bytes, none at the end."""
        view = memoryview(buffer).cast("B")
        while not self._plain and self._fed():
            self._plain = self._frame.decompress(self._compressed)
            self._within = not self._frame.eof
            self._compressed = b"" if self._within else self._frame.unused_data
            if not self._within:
                self._frame = self._frames.decompressobj()
        given, self._plain = self._plain[: len(view)], self._plain[len(view) :]
        view[: len(given)] = given
        return len(given)

    def _fed(self) -> bool:
        self._compressed = self._compressed or self._file.read(_CHUNK_BYTES)
        if not self._compressed and self._within:
            raise EOFError
        return bool(self._compressed)
