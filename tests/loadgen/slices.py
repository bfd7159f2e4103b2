"""Slices of public traces, where there are any."""

import os
from pathlib import Path

import pytest

SLICES = Path(os.environ.get("PIMSERVE_TRACES") or Path(__file__).parents[2] / "../shared/traces")
real = [
    pytest.mark.traces,
    pytest.mark.skipif(not SLICES.is_dir(), reason=f"no trace slices in {SLICES} (set PIMSERVE_TRACES)"),
]
