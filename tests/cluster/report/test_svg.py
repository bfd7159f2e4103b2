"""Pictures: the page's colours, text as text, the same bytes every time, and nothing that a name could break."""

import re
import xml.etree.ElementTree as ET

import pytest

from pimserve.cluster.report.svg import COLOURS, DASHES, GRID, PAPER, QUIET, TEXT, picture

HOSTILE = "</svg><script>alert(1)</script> $x_1$ \\frac & \" ' 你好"


def draw(figure):
    axes = figure.add_subplot()
    for index, colour in enumerate(COLOURS):
        axes.plot([0, 1, 2], [index, 2, 1], color=colour, linestyle=DASHES[index % 4], marker="o")
    axes.fill_between([0, 1], [0, 1], [1, 2], color=GRID, alpha=0.5, linewidth=0)
    axes.axvline(1, color=TEXT)
    axes.axhline(1, color=QUIET)
    axes.bar([1], [2], color=COLOURS[0], edgecolor=PAPER, hatch="//")
    axes.text(0, 0, HOSTILE)
    axes.set_xlabel(HOSTILE)


@pytest.fixture(scope="module")
def svg():
    return picture("a-key", HOSTILE, f"alt {HOSTILE}", "", draw).svg


def test_the_same_picture_has_the_same_bytes(svg):
    assert picture("a-key", HOSTILE, f"alt {HOSTILE}", "", draw).svg == svg


def test_every_colour_is_one_of_the_page(svg):
    assert set(re.findall(r"(?:fill|stroke|color):(?! ?url) ?([^;\"]+)", svg)) <= {
        "none",
        *(f"var(--{name})" for name in ("text", "quiet", "grid", "paper", *(f"series-{n}" for n in range(8)))),
    }
    assert "#0a0" not in svg


def test_what_is_written_stays_text_and_is_only_text(svg):
    root = ET.fromstring(svg)
    space = {"s": "http://www.w3.org/2000/svg"}
    written = ["".join(each.itertext()) for each in root.findall(".//s:text", space)]
    assert written.count(HOSTILE) == 2
    assert root.find(".//s:script", space) is None
    assert root.find("s:title", space).text == HOSTILE
    assert root.find("s:desc", space).text == f"alt {HOSTILE}"
    assert root.get("role") == "img"
    assert root.get("aria-labelledby").split() == ["a-key-title", "a-key-alt"]


def test_ids_are_of_this_picture_and_are_all_used(svg):
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert all(each.startswith("a-key-") for each in ids)
    used = {*re.findall(r'href="#([^"]+)"', svg), *re.findall(r"url\(#([^)]+)\)", svg), "a-key-title", "a-key-alt"}
    assert used == set(ids)


def test_nothing_says_when_where_or_with_what_it_was_drawn(svg):
    assert not re.search(r"metadata|<style|<!--|Matplotlib|font-family|\b20\d\d-", svg)
