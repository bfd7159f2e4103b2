"""What docs/speculative.md shows of Duplex: as its command makes it, and the law behind it."""

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_as_the_command_would_write_it(monkeypatch):
    spec = importlib.util.spec_from_file_location("docs_speculative_gallery", DOCS / "speculative_gallery.py")
    gallery = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    found = {drafts: gallery.steps(drafts) for drafts in gallery.DRAFTS}
    monkeypatch.setattr(gallery, "steps", found.__getitem__)
    monkeypatch.setattr(sys, "argv", ["speculative_gallery.py", "--check"])
    assert gallery.main() == 0
    assert [row[0].intensity for row in found.values()] == [4 * (drafts + 1) for drafts in found]
    # Who runs the experts hangs on the tokens of a step, whoever they are of.
    for drafts, row in found.items():
        for requests, step in zip(gallery.REQUESTS, row, strict=True):
            of_processor = step.experts_on_xpu > 0.5
            assert of_processor == (requests * (drafts + 1) >= 192), (drafts, requests)
    times = [[step.seconds for step in row] for row in found.values()]
    assert all(a < b for less, more in pairwise(times) for a, b in zip(less, more, strict=True))
