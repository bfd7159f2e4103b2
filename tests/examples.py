"""How many examples property tests try: a share of the number that a test names, all of them in `make test-deep`."""

import os
from typing import Any

import hypothesis

SHARE = float(os.environ.get("PIMSERVE_EXAMPLES", "0.2"))
_LEAST = 5


def number(count: int) -> int:
    """The share of so many examples, and never less than a few."""
    return max(min(count, _LEAST), round(count * SHARE))


def examples(count: int, **others: Any) -> hypothesis.settings:
    """Settings of a test that tries so many examples in `make test-deep`, and elsewhere a share of them."""
    return hypothesis.settings(max_examples=number(count), **others)
