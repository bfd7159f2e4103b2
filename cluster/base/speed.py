"""Speeds of runs as people give them: simulated seconds per second of the wall clock."""

from __future__ import annotations

import math
import re

from pimserve.errors import InputError, shortened

SLOWEST, FASTEST = 1e-3, 1e6


def parse_speed(text: str, where: str = "--speed") -> float:
    """Simulated seconds per second of the wall clock, from "60x", "60" or "0.5x".

    Raises:
        InputError: it is no such factor, or out of range.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?x?", text.strip(), re.IGNORECASE | re.ASCII)
    speed = float(text.strip().rstrip("xX")) if match else math.nan
    if not SLOWEST <= speed <= FASTEST:
        raise InputError(
            where, f"must be a factor of {SLOWEST:g} to {FASTEST:g}, such as 60x (got {shortened(repr(text))})"
        )
    return speed
