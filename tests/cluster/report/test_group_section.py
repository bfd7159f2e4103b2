"""What a report shows of groups of devices."""

import pytest

from pimserve.cluster.base.figures import share
from pimserve.cluster.report.group_section import group_sections
from pimserve.cluster.report.inputs import load_run
from pimserve.cluster.report.parts import parts_of
from pimserve.cluster.report.pictures import Named
from pimserve.cluster.report.report import write_report
from pimserve.cluster.run.timeline import write_timeline
from tests.cluster.report.runs import MIXED, make_run


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return load_run(make_run(tmp_path_factory.mktemp("runs") / "r", *MIXED, "workload.num_requests=20"))


def test_a_single_run_has_a_bar_for_each_group_and_its_tables(mixed):
    (section,) = group_sections([Named("", mixed)])
    (time,) = section.pictures
    for name in ("attention", "experts"):
        shares = getattr(mixed.summary.groups, name).shares_of_time
        assert f"{name} working {share(shares.working)}" in time.alt
        assert f"waiting for the other group {share(shares.other_group)}" in time.alt
        assert f">{name}<" in time.svg
    # Crossbars hold weights too: what is 0 there is memory's.
    assert "weights in memory of each, GB" in [row.label for row in section.tables[0].rows]
    assert [table.caption for table in section.tables] == [
        "Groups of devices",
        "Link between the groups",
        "Micro-batches",
    ]


def test_several_runs_stand_in_one_picture(mixed, tmp_path):
    plain = load_run(make_run(tmp_path / "plain", "workload.num_requests=5"))
    (section,) = group_sections([Named("A", mixed), Named("B", plain), Named("C", mixed)])
    (time,) = section.pictures
    assert "A experts working" in time.alt
    assert "C attention working" in time.alt
    assert "B" not in time.alt
    assert not section.tables
    assert group_sections([Named("", plain)]) == []


def test_each_group_has_its_roofs_and_operators(mixed):
    attention, experts = parts_of([Named("", mixed)])
    assert (attention.device, experts.device) == ("duplex", "aimc-realistic")
    assert (attention.stationary, experts.stationary) == (False, True)
    assert {work.name for work in attention.steps[0].work} >= {"qkv", "attention, decode", "gate", "lm head"}
    assert all(not step.work for step in experts.steps)
    assert attention.load is None
    assert experts.load is not None
    assert (attention.of, experts.of) == (", attention", ", experts")


@pytest.mark.medium
def test_hot_and_cold_experts_are_one_group_without_a_roof_of_its_own(tmp_path):
    hot = "cluster.placement.hot_experts={device: h100, devices_per_node: 1, count: 2}"
    skewed = "routing={popularity: zipf, zipf_exponent: 1.0}"
    folder = make_run(tmp_path / "r", *MIXED, hot, skewed, "workload.num_requests=5")
    found = load_run(folder)
    attention, experts = parts_of([Named("", found)])
    assert experts.device == "h100 + aimc-realistic"
    assert attention.steps[0].work
    assert all(not step.work for step in experts.steps)
    assert experts.load.groups is None  # they do not hold as many each
    assert found.summary.groups.experts.device_facts["hot_experts"]["count"] == 2
    text = write_report([folder], tmp_path / "report.html").read_text()
    assert "experts hot xPU" in text
    assert sum(write_timeline(folder, tmp_path / "timeline.json").values()) > 0
