"""Named random substreams: what they hang on, and what not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.streams import Streams

NAMES = st.text(min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("name", "key"), [("arrivals", 0), ("input lengths", 1), ("output lengths", 2), ("stagger", 3)]
)
def test_the_first_four_streams_draw_what_they_always_drew(name, key):
    before = np.random.default_rng(np.random.SeedSequence(7, spawn_key=(key,)))
    np.testing.assert_array_equal(Streams(7).rng(name).random(100), before.random(100))


def test_a_stream_is_the_same_in_every_process_and_version():
    assert Streams(0).rng("prefix groups").integers(1 << 62) == 2252741933009747599


@given(seed=st.integers(0, 2**63), name=NAMES, other=NAMES)
def test_a_stream_hangs_on_seed_and_name_alone(seed, name, other):
    first = Streams(seed).rng(name).integers(1 << 62, size=4)
    assert (Streams(seed).rng(other).integers(1 << 62, size=4) == first).all() == (name == other)
    assert (Streams(seed).rng(name).integers(1 << 62, size=4) == first).all()
    assert (Streams(seed + 1).rng(name).integers(1 << 62, size=4) != first).any()
