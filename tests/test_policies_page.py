"""The comparisons in docs/policies.md: as their command makes them, and each way wins at its own aim."""

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("docs_policy_gallery", DOCS / "policy_gallery.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.medium
def test_the_page_is_as_the_command_would_write_it(gallery, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["policy_gallery.py", "--check"])
    found = {each.name: each.found() for each in gallery.COMPARISONS}
    monkeypatch.setattr(gallery.Comparison, "found", lambda self: found[self.name])
    assert gallery.main() == 0
    for each in gallery.COMPARISONS:
        plain = next(iter(each.ways))
        for number, figure in enumerate(each.figures):
            if figure.aim_of:
                mine, others = found[each.name][figure.aim_of][number], found[each.name][plain][number]
                better = (
                    mine > 1.2 * others if figure.name.startswith(("requests within", "good")) else mine < 0.85 * others
                )
                assert better, figure.name
    found["tight_kv_cache"]["prompt"][0] += 1
    assert gallery.main() == 1
