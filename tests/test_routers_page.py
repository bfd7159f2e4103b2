"""The comparison in docs/routers.md: as its command makes it, and whoever goes by prefixes wins."""

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_the_page_is_as_the_command_would_write_it(monkeypatch):
    spec = importlib.util.spec_from_file_location("docs_router_gallery", DOCS / "router_gallery.py")
    gallery = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    monkeypatch.setattr(sys, "argv", ["router_gallery.py", "--check"])
    found = {router: gallery.figures_of(router) for router in (*gallery.LOOK_AWAY, *gallery.BY_PREFIX)}
    monkeypatch.setattr(gallery, "figures_of", found.__getitem__)
    assert gallery.main() == 0
    for looks in gallery.BY_PREFIX:
        for other in gallery.LOOK_AWAY:
            ttft, p99, tokens, hits, within = (
                mine / theirs for mine, theirs in zip(found[looks], found[other], strict=True)
            )
            assert (ttft < 0.1, p99 < 0.2, tokens > 1.1, hits > 2, within > 2) == (True,) * 5, (looks, other)
    found["llm_d"][0] += 1
    assert gallery.main() == 1
