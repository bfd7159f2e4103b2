"""How hypothesis searches, in every test, and which folders of tests need servers."""

import gc
import os
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from tests.examples import number

pytest.register_assert_rewrite("tests.cluster.metrics.agreement", "tests.scheduler.engine_runs")  # tell what differs

WITH_SERVERS = [Path(__file__).parent / "cluster" / name for name in ("client", "distributed", "service")]
assert all(folder.is_dir() for folder in WITH_SERVERS), WITH_SERVERS

# Examples share the cores with the rest of the suite, so hypothesis's deadline per example would only flake.
USUAL = hypothesis.settings(deadline=None, max_examples=number(100))
hypothesis.settings.register_profile("default", USUAL)
# In CI the same examples every time: a red build is about the change, and can be repeated.
hypothesis.settings.register_profile("ci", USUAL, derandomize=True, print_blob=True)
# Of a mutant it is enough to know that an example fails; the smallest one takes minutes to find.
TRIED = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
hypothesis.settings.register_profile("mutants", USUAL, derandomize=True, phases=TRIED)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default"))


@cache  # of four hundred files, and ten thousand tests
def _has_servers(file: Path) -> bool:
    return any(folder in file.parents for folder in WITH_SERVERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests in folders about servers; what is deep is slow."""
    for item in items:
        if item.get_closest_marker("deep"):
            item.add_marker(pytest.mark.slow)
        if _has_servers(item.path):
            item.add_marker(pytest.mark.server)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the thousands of tests, which stay to the end."""
    gc.collect()
    gc.freeze()
