"""Percentiles that runs were asked for are key figures of their sweep, and stand beside others in comparisons."""

from typing import Any

from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.cluster.run.run_figures import run_figures, unit_of, value_at
from pimserve.cluster.sweep.key_figures import FIGURES, key_figures, outcome_of
from pimserve.cluster.sweep.pareto import why_not_on_a_front
from pimserve.cluster.sweep.sweep_tables import figure_columns
from tests.cluster.run.example_summary import example_summary

PLACE = "latency_s.ttft.percentiles.p99.9"


def asked() -> dict[str, Any]:
    document = example_summary(stability="steady")
    for latency in document["latency_s"].values():
        latency["percentiles"] = {"p50": latency["p50"], "p99.9": 1.25}
    document["ci95"] = {"latency_s": {"ttft": {"percentiles": {"p99.9": 0.5}}}}
    return document


def test_sweeps_have_them_after_those_of_all() -> None:
    outcome = outcome_of(summary_of_document(asked()))
    keys = [figure.key for figure in FIGURES]
    keys.insert(keys.index("ttft_p99_s") + 1, "ttft_p99.9_s")
    keys.insert(keys.index("tpot_p99_s") + 1, "tpot_p99.9_s")
    assert list(outcome.figures) == keys == [figure.key for figure in key_figures(keys)]
    assert outcome.figures["tpot_p99.9_s"] == 1.25
    assert outcome.ci95 == {"ttft_p99.9_s": 0.5}
    assert list(outcome_of(summary_of_document(example_summary())).figures) == [figure.key for figure in FIGURES]


def test_tables_of_points_show_them() -> None:
    point = {"figures": {"ttft_p99_s": {"mean": 1, "ci95": None}, "ttft_p99.9_s": {"mean": 1.25, "ci95": 0.5}}}
    columns = dict(figure_columns({"seeds": [0]}, [point], "figures"))
    assert columns["TTFT p99, s"] == ["1.00"]
    assert columns["TTFT p99.9, s"] == ["1.25 ± 0.500"]


def test_comparisons_have_what_any_run_was_asked_for() -> None:
    summaries = [summary_of_document(example_summary()), summary_of_document(asked())]
    figures = {figure.path: figure for figure in run_figures(summaries)}
    assert figures[PLACE].label == "TTFT p99.9"
    assert unit_of(PLACE) == "s"
    assert [value_at(summary, PLACE) for summary in summaries] == [None, 1.25]
    assert PLACE not in [figure.path for figure in run_figures(summaries[:1])]


def test_who_exceeds_a_limit_at_a_percentile_is_on_no_front() -> None:
    document = asked()
    document["slo"]["attainment"] = 1.0
    limit = {"limit": 2.0, "measured": 2.5, "margin": -0.5, "relative_margin": -0.25, "n": 99, "enough_samples": True}
    document["slo"]["at_percentiles"] = {
        "ttft_p50_s": limit | {"passed": True},
        "itl_p99.9_s": limit | {"passed": None},
    }
    assert why_not_on_a_front(summary_of_document(document)) is None
    document["slo"]["at_percentiles"]["ttft_p99.9_s"] = limit | {"passed": False}
    assert why_not_on_a_front(summary_of_document(document)) == "misses its SLO at a percentile: ttft_p99.9_s"
