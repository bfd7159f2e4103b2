"""Cosine and logarithm without the processor's own: as exact as those of the C library."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.elementary import cosine, log1p


@given(st.floats(-1e6, 1e6))
def test_cosine_of_turns(turns):
    assert cosine(np.array([turns]))[0] == pytest.approx(math.cos(2 * math.pi * math.fmod(turns, 1)), abs=2e-15)


def test_cosine_of_quarters_is_exact():
    assert cosine(np.array([0, 0.25, 0.5, 0.75, 1, -0.25])) == pytest.approx([1, 0, -1, 0, 1, 0], abs=1e-16)


@given(st.one_of(st.floats(-0.999_999, 1e12), st.floats(-1e-3, 1e-3)))
def test_log1p(x):
    assert log1p(np.array([x]))[0] == pytest.approx(math.log1p(x), rel=1e-15, abs=1e-300)
