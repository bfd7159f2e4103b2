"""Times of steps in machine integers, by the part of the package that is compiled where it is installed.

Same bits, sooner: what a time means is said by `serial`, `micro_batches`, `round_trips` and a replica's costs, which
work it out where no compiler was there, where numbers leave 64 bit, and with PIMSERVE_COMPILED=0. They also do where
the sources have changed since they were compiled, in a clone that was pulled and not made anew.
"""

import os
from pathlib import Path
from zlib import crc32


def is_of_its_sources(compiled: int, folder: Path) -> bool:
    """Whether what was compiled has the checksum of the sources in a folder; a wheel has none of them."""
    sources = sorted(folder.glob("*.[ch]"))
    return not sources or crc32(b"".join(path.read_bytes() for path in sources)) == compiled


try:
    from pimserve.device_models.compiled._steps import SOURCES, MixedSteps, SerialSteps
except ImportError:
    SOURCES = -1
    MixedSteps = SerialSteps = None  # type: ignore[assignment,misc]

COMPILED = (
    MixedSteps is not None
    and os.environ.get("PIMSERVE_COMPILED", "1") != "0"
    and is_of_its_sources(SOURCES, Path(__file__).parent)
)
__all__ = ["COMPILED", "MixedSteps", "SerialSteps"]
