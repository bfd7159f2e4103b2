"""The study of mixed replicas: its page is what its results say, and its runs give these results."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

STUDIES = Path(__file__).parents[1] / "docs" / "studies"


@pytest.fixture(scope="module")
def study():
    """docs/studies/mixed.py as a module of its own; its neighbours are importable then."""
    spec = importlib.util.spec_from_file_location("docs_studies_mixed", STUDIES / "mixed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(study):
    return json.loads(study.RESULTS.read_text(encoding="utf-8"))


def page_of(results):
    return sys.modules["mixed_page"].page(sys.modules["mixed_results"].Study(results))


@pytest.fixture(scope="module")
def modules(study):
    import mixed_page  # noqa: F401, PLC0415 importable only now

    return sys.modules


def test_the_page_is_what_its_results_say(modules, results):
    assert (STUDIES / "mixed.md").read_text(encoding="utf-8") == page_of(results)


def test_sentences_are_held_against_the_results(modules, results):
    other = copy.deepcopy(results)
    for cell in other["cells"]:
        if cell["system"] == "gpu" and cell["relaxed"]["goodput"]:
            cell["relaxed"]["goodput"]["rate_per_s"] *= 1000
    with pytest.raises(modules["mixed_findings"].NotSaidError, match="do not say"):
        page_of(other)


def test_results_are_written_as_they_were(study, results):
    assert study.as_text(results) == study.RESULTS.read_text(encoding="utf-8")


def test_lengths_of_code_have_the_published_means(modules):
    lengths = modules["mixed_systems"].LENGTHS["code"]["lengths"]
    for part, published in (("input", 2048), ("output", 27.9)):
        p, tokens = zip(*lengths[part]["knots"], strict=True)
        assert np.trapezoid(tokens, p) == pytest.approx(published, rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("place", [("mixtral-8x7b", "gpu", 0, "code"), ("mixtral-8x7b", "duplex+aimc", 0, "code")])
def test_runs_give_these_results(study, results, place):
    model, system, number, traffic = place
    found = study.rounded(modules_cell(*place))
    wanted = next(
        cell
        for cell in results["cells"]
        if (cell["model"], cell["system"], cell["shape"], cell["traffic"]) == (model, system, number, traffic)
    )
    assert found == wanted


def modules_cell(*place):
    return sys.modules["mixed_runs"].cell(*place)
