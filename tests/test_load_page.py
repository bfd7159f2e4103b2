"""The gallery of arrival processes in docs/load.md: as its command makes it, and with all of them in it."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pimserve.loadgen.arrival_processes import BUILT_IN_PROCESSES
from pimserve.loadgen.arrivals import ArrivalSpec
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.workload import WorkloadSpec

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("docs_load_gallery", DOCS / "load_gallery.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_as_the_command_would_write_it(gallery, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["load_gallery.py", "--check"])
    assert gallery.main() == 0
    monkeypatch.setattr(gallery, "EXHIBITS", gallery.EXHIBITS[1:])
    assert gallery.main() == 1


def test_every_process_and_every_way_of_a_rate_is_drawn(gallery):
    specs = [ArrivalSpec.model_validate(yaml.safe_load(exhibit.arrival)) for exhibit in gallery.EXHIBITS]
    assert {spec.process for spec in specs} == BUILT_IN_PROCESSES.keys()
    for key in ("rate_per_s", "rate_series", "stages", "ramp", "diurnal", "mmpp", "burstiness", "shape", "cv"):
        assert any(getattr(spec, key) is not None for spec in specs), key


def test_its_pictures_are_there_and_no_others():
    named = set(re.findall(r"!\[.*?\]\(images/(load_.*?)\)", (DOCS / "load.md").read_text()))
    assert named == {path.name for path in DOCS.glob("images/load_*")}


def test_its_examples_are_workloads_or_objectives():
    for block in re.findall(r"```yaml\n(.*?)```", (DOCS / "load.md").read_text(), re.DOTALL):
        document = yaml.safe_load(block)
        if "workload" in document:
            WorkloadSpec.model_validate(document["workload"])
        else:
            SloSpec.model_validate(document["slo"])


def test_what_is_drawn_as_asked_for_is_the_rate(gallery):
    (ramp,) = (exhibit for exhibit in gallery.EXHIBITS if exhibit.name == "linear ramp")
    times, rates = gallery.process_arrivals(ramp).asked
    np.testing.assert_allclose(rates, np.minimum(1 + 19 * times / 900, 20), rtol=0.01)


def test_dispersion_is_of_counts(gallery):
    arrivals = gallery.Arrivals(np.repeat(np.arange(2000.0), 5))  # five at once: their variance is five times the mean
    widths, found = arrivals.dispersion()
    assert found[0] == pytest.approx(4, rel=0.05)  # bins of a fifth of a second: five or none
    assert widths[0] == pytest.approx(0.2, rel=0.01)
