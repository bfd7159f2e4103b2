"""Times of steps in machine integers, by the part of the package that is compiled where it is installed.

Same bits, sooner: what a time means is said by `serial`, `micro_batches`, `round_trips` and a replica's costs, which
work it out where no compiler was there, where numbers leave 64 bit, and with PIMSERVE_COMPILED=0.
"""

import os

try:
    from pimserve.device_models.compiled._steps import MixedSteps, SerialSteps
except ImportError:
    MixedSteps = SerialSteps = None  # type: ignore[assignment,misc]

COMPILED = MixedSteps is not None and os.environ.get("PIMSERVE_COMPILED", "1") != "0"
__all__ = ["COMPILED", "MixedSteps", "SerialSteps"]
