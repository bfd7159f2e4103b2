"""The comparison in docs/wins.md: whoever is said to win does, and the page is as its command makes it."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pimserve.scheduler.policy import BUILT_IN_POLICIES
from pimserve.scheduler.router import BUILT_IN_ROUTERS

DOCS = Path(__file__).parents[1] / "docs"
SHORT = {"unlike_prompts": 500, "slow_replica": 1200, "repeated_suite": 400}  # requests with which it shows, too


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("docs_wins_gallery", DOCS / "wins_gallery.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_policy_and_router_wins_somewhere(gallery):
    for key, names in (("policy", BUILT_IN_POLICIES), ("router", BUILT_IN_ROUTERS)):
        assert {win.way for win in gallery.WINS if win.key == key} == names


@pytest.mark.medium
def test_who_is_said_to_win_wins(gallery):
    """In the examples that are there for it; of others, see the pages of policies and routers."""
    for win in gallery.WINS:
        if win.example in SHORT:
            mine, other = replace(win, settings=(f"workload.num_requests={SHORT[win.example]}",)).values()
            assert mine < 0.8 * other, win


@pytest.mark.deep
def test_the_page_is_as_the_command_would_write_it(gallery, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["wins_gallery.py", "--check"])
    assert gallery.main() == 0
    assert all(mine < 0.9 * other for mine, other in map(gallery.Win.values, gallery.WINS))
