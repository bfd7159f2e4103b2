"""Reports of runs, of several and of sweeps: their figures are the summaries', and what is odd is said, not fatal."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
import yaml

from pimserve.cluster.base.figures import figure, scaled
from pimserve.cluster.report.inputs import load_run
from pimserve.cluster.report.series import request_series, step_series
from pimserve.cluster.run.read_summary import load_document
from pimserve.scheduler.distributions import percentile
from tests.cluster.report.parsed_page import page_of
from tests.cluster.report.runs import changed_summary, make_run
from tests.cluster.run.example_summary import example_summary, without_numbers

pytestmark = pytest.mark.slow

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)"> $x$ {{ 7*7 }} \udcff\x00 你好'


@pytest.mark.parametrize("name", ["duplex", "aimc", "measured", "pools", "faults", "mixed"])
def test_every_kind_of_run_has_a_page_that_needs_nothing_else(page_alone, name):
    text, page = page_alone(name)
    assert not re.search(r"""(?:src|href)="(?!#)|url\((?!#)|@import|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert len(page.ids) == len(set(page.ids))
    for link in page.of("a"):
        assert link["href"].removeprefix("#") in page.ids
    svgs = page.of("svg")
    assert len(svgs) >= 12
    for svg in svgs:
        assert svg["role"] == "img"
        assert all(each in page.ids for each in svg["aria-labelledby"].split())
    assert page.of("caption")
    assert all(each["scope"] in {"row", "col"} for each in page.of("th"))
    assert all(each.get("tabindex") == "0" for each in page.of("div") if "scroll" in each.get("class", ""))


def test_figures_are_those_of_the_summary(runs, page_alone):
    summary = load_document(runs["duplex"])
    text, page = page_alone("duplex")
    written = " ".join(page.text)
    for value in (
        figure(summary["throughput"]["output_tokens_per_s"]),
        scaled(summary["latency_s"]["ttft"]["p99"], "s"),
        scaled(summary["latency_s"]["e2e"]["p50"], "s"),
        scaled(summary["energy"]["joules_per_output_token"], "J"),
        summary["digest"],
        summary["scenario_digest"],
    ):
        assert value in written
    assert f"p99 {scaled(summary['latency_s']['tpot']['p99'], 's')}" in text
    assert "SLO 40 ms" in text


@pytest.mark.parametrize("name", ["duplex", "aimc", "measured", "pools", "faults", "mixed"])
def test_curves_are_made_of_the_summarys_samples(runs, name):
    run = load_run(runs[name])
    for key, samples in run.latencies().items():
        told = getattr(run.summary.latency_s, key)
        assert len(samples) == told.n
        assert samples.mean() == pytest.approx(told.mean, rel=1e-12)
        for percent in (50, 90, 99):
            assert percentile(samples, percent) == pytest.approx(getattr(told, f"p{percent}"), rel=1e-12)


@pytest.mark.parametrize("name", ["duplex", "pools", "faults"])
def test_series_add_up_to_the_summary(runs, name):
    run = load_run(runs[name])
    steps, requests = step_series(run), request_series(run)
    width = np.diff(steps.edges)
    assert (steps.output * width).sum() == pytest.approx(run.summary.tokens.output)
    assert (requests.finished * width).sum() == pytest.approx(run.summary.requests.finished)
    assert (requests.arrived * width).sum() == pytest.approx(run.summary.requests.total)
    assert steps.kv.high.max() == pytest.approx(run.summary.kv.peak_use)
    if name != "pools":  # whose caches differ in size
        assert steps.kv.mean.mean() == pytest.approx(run.summary.kv.mean_use, rel=1e-6)
    assert requests.waiting.low.min() >= 0


def test_the_same_run_gives_the_same_bytes(runs, page_alone, tmp_path):
    first, _ = page_alone("duplex")
    second, _ = page_of(runs["duplex"], tmp_path)
    assert hashlib.sha256(first.encode()).digest() == hashlib.sha256(second.encode()).digest()


def test_a_page_is_small_and_its_series_short(page_alone):
    text, _ = page_alone("duplex")
    assert len(text) < 600_000
    longest = max(re.findall(r' d="([^"]*)"', text), key=len)
    assert longest.count(" L ") <= 2000


def test_names_of_runs_are_only_text(copy, tmp_path):
    changed_summary(copy, name=HOSTILE, model=HOSTILE, device=HOSTILE, workload=HOSTILE, warnings=[HOSTILE])
    (copy / "scenario.yaml").write_text(yaml.safe_dump({"name": HOSTILE[:70], HOSTILE[:70]: "<b>"}))
    for places in ([copy], [copy, copy]):
        text, page = page_of(places, tmp_path, title=HOSTILE)
        assert len(page.of("script")) == 1
        assert not page.of("img")
        assert "49" not in page.text[: page.text.index("Warnings")]
        assert "{{ 7*7 }}" in text
        assert "\x00" not in text
        assert any("<script>alert(1)</script>" in each for each in page.text)


def test_the_only_script_is_the_one_that_the_page_allows(page_alone):
    text, page = page_alone("duplex")
    (policy,) = (each["content"] for each in page.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_run_without_steps_says_so(tmp_path):
    folder = make_run(tmp_path / "run", "output.steps=false", "workload.num_requests=30")
    text, page = page_of(folder, tmp_path)
    assert "No pictures of steps, batch and KV cache: the run has no steps.npy (output.steps: false)." in page.text
    assert 'id="kv-title"' not in text
    assert 'id="latency-ttft-title"' in text
    assert "No roofline and no expert load" in text


def test_a_summary_alone_is_enough(bare, tmp_path):
    text, page = page_of(bare / "summary.json", tmp_path)
    assert any("No pictures of latencies" in each for each in page.text)
    assert 'id="time-title"' in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", ["requests.npy", "steps.npy", "scenario.yaml"])
def test_a_damaged_part_is_left_out(copy, tmp_path, damage):
    (copy / damage).write_bytes(b"\x93NUMPY nonsense")
    text, _ = page_of(copy, tmp_path)
    assert "No roofline and no expert load" in text
    assert 'id="time-title"' in text


@pytest.mark.usefixtures("undrawn")
def test_what_is_left_out_is_named(copy, tmp_path):
    whole = (copy / "requests.npy").read_bytes()
    (copy / "requests.npy").write_bytes(whole[: len(whole) // 2])
    _, page = page_of(copy, tmp_path)
    assert any(each.startswith("No pictures of latencies: requests.npy: cannot be read") for each in page.text)


@pytest.mark.usefixtures("undrawn")
def test_the_requests_of_another_run_are_left_out(runs, copy, tmp_path):
    np.save(copy / "requests.npy", np.load(runs["aimc"] / "requests.npy")[:-1])
    text, _ = page_of(copy, tmp_path)
    assert "requests.npy: is of another run: total 119, where summary.json has 120" in text
    assert 'id="latency-ttft-title"' not in text


@pytest.mark.usefixtures("undrawn")
def test_requests_that_cannot_have_been_are_left_out(copy, tmp_path):
    table = np.load(copy / "requests.npy")
    table["arrival_ps"][::2] = 2**62
    np.save(copy / "requests.npy", table)
    _, page = page_of(copy, tmp_path)
    assert any(each.startswith("No pictures of latencies: requests.npy: is damaged") for each in page.text)


@pytest.mark.usefixtures("undrawn")
def test_a_table_of_another_version_is_left_out(copy, tmp_path):
    np.save(copy / "requests.npy", np.zeros(3))
    assert "is not a table of this version" in page_of(copy, tmp_path)[0]


@pytest.mark.usefixtures("undrawn")
def test_steps_that_cost_something_else_today_are_left_out(copy, tmp_path):
    changed_summary(copy, plan_digest="of another version")
    assert "plan_digest in summary.json is not that of scenario.yaml" in page_of(copy, tmp_path)[0]


@pytest.mark.parametrize("odd", [None, "text", [], {}, True, -1, 1e308])
def test_a_summary_of_whatever_has_a_page(copy, tmp_path, odd):
    kept = {
        "schema_version",
        "requests",
        "window",
        "throughput",
        "latency_s",
        "slo",
        "energy",
        "batch",
        "kv",
        "simulator",
    }
    changed_summary(copy, **{key: odd for key in load_document(copy) if key not in kept})
    page_of(copy, tmp_path)
    changed_summary(copy, **{key: {} for key in kept - {"schema_version"}})
    page_of(copy, tmp_path)


def test_a_summary_without_numbers_has_a_page(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    summary = without_numbers(example_summary())
    summary["schema_version"] = example_summary()["schema_version"]
    (folder / "summary.json").write_text(json.dumps(summary))
    page_of(folder, tmp_path)
    page_of([folder, folder], tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_warnings_and_stability_are_on_the_page(copy, tmp_path):
    changed_summary(copy, warnings=["beware"], stability="too short to tell")
    _, page = page_of(copy, tmp_path)
    assert "beware" in page.text
    assert "too short to tell" in page.text


def test_pools_faults_and_device_facts_are_shown_where_there_are_any(runs, page_alone):
    ids = {name: page_alone(name)[1].ids for name in runs}
    assert {name for name, found in ids.items() if "pools" in found} == {"pools"}
    assert {name for name, found in ids.items() if "faults" in found} == {"faults"}
    assert {name for name, found in ids.items() if "experts" in found} == {"duplex", "aimc", "pools", "faults", "mixed"}
    assert "roofline-prefill-title" in ids["pools"]
    assert "passive power is assumed" in page_alone("aimc")[0]


def test_stages_of_the_load_have_their_figures(page_alone, tmp_path):
    stages = "stages: [{rate_per_s: 10, duration_s: 4}, {rate_per_s: 20, duration_s: 4}]"
    folder = make_run(tmp_path / "run", f"workload={{preset: azure-conv-2023, arrival: {{{stages}}}}}")
    _, page = page_of(folder, tmp_path)
    assert "stages" in page.ids
    for stage, place in zip(load_document(folder)["stages"], ("0 to 4 s", "4 to 8 s"), strict=True):
        assert place in page.text
        assert figure(stage["offered_requests_per_s"]) in page.text
        assert scaled(stage["latency_s"]["ttft"]["p99"], "s") in page.text
    assert "stages" not in page_alone("duplex")[1].ids


def test_classes_have_their_figures(page_alone, tmp_path):
    classes = "workload.classes=[{name: chat, slo: {ttft_s: 0.02, e2e_p50_s: 1}}, {name: night-batch}]"
    folder = make_run(tmp_path / "run", classes)
    _, page = page_of(folder, tmp_path)
    assert "classes" in page.ids
    for each in load_document(folder)["classes"]:
        assert each["name"] in page.text
        assert scaled(each["latency_s"]["ttft"]["p99"], "s") in page.text
    assert "Limits at percentiles, class chat" in page.text
    assert "TTFT within limits of classes" in page.text
    assert "classes" not in page_alone("duplex")[1].ids


@pytest.mark.usefixtures("undrawn")
def test_runs_of_different_settings_are_warned_about(runs, tmp_path):
    text, page = page_of([runs["duplex"], runs["measured"]], tmp_path)
    (unlike,) = (each for each in page.text if "not like for like" in each)
    assert "the setting of their costs (ideal against measured)" in unlike
    assert "costs: measured (h100, vllm" in text
    assert "B/A" in page.text
    assert "cluster.device.name" in page.text


@pytest.mark.usefixtures("undrawn")
def test_runs_side_by_side_share_their_pictures(runs, tmp_path):
    text, page = page_of([runs["duplex"], runs["aimc"], runs["pools"]], tmp_path, title="mine")
    assert page.text.count("mine") >= 2
    (alt,) = re.findall(r'<desc id="latency-ttft-alt">([^<]*)', text)
    for letter, name in zip("ABC", ("duplex", "aimc", "pools"), strict=True):
        told = load_document(runs[name])["latency_s"]["ttft"]
        assert f"{letter}: {told['n']:,} requests, p50 {scaled(told['p50'], 's')}" in alt


def test_runs_side_by_side_have_their_rooflines_and_experts(runs, page_alone, tmp_path):
    names = ("duplex", "pools", "aimc", "measured")
    text, page = page_of([runs[name] for name in names], tmp_path)
    alone = {name: page_alone(name)[0] for name in names}

    def alts(of, start):
        return dict(re.findall(rf'<desc id="({start}[^"]*)-alt">([^<]*)', of))

    theirs = alts(text, "roofline")
    assert list(theirs) == [f"roofline-{key}" for key in ("a", "b-prefill", "b-decode", "c", "d")]
    for name, key in (("duplex", "a"), ("aimc", "c"), ("measured", "d")):
        assert theirs[f"roofline-{key}"] == alts(alone[name], "roofline")["roofline"]
    assert theirs["roofline-b-decode"] == alts(alone["pools"], "roofline")["roofline-decode"]
    # All axes are the same: so are their ticks.
    pictures = re.findall(r'<title id="roofline-[^"]*">.*?</svg>', text, re.DOTALL)
    ticks = [set(re.findall(r">([\d.]+ [TGPM]|[\d.]+)</text>", each)) for each in pictures]
    assert len(ticks[0]) > 4
    assert all(each == ticks[0] for each in ticks)
    # Mixtral's experts are alike in all runs, but lie on groups of devices in some only; llama has none.
    shared = re.findall(r'<title id="experts[^"]*">([^<]*)', text)
    assert sorted(letter for title in shared for letter in re.findall(r"\b([A-D])\b", title)) == ["A", "B", "B", "C"]
    assert len(shared) == 2
    assert {"The mean decoding step", "Operators of the mean step with prompts", "Load of experts"} <= set(page.text)
    assert any("Of C: Matrix products run where the weights lie" in each for each in page.text)


def test_a_run_without_steps_has_no_roofline_beside_others(runs, copy, tmp_path):
    (copy / "steps.npy").unlink()
    text, page = page_of([runs["duplex"], copy], tmp_path)
    assert "Not here: B: the run has no steps.npy (output.steps: false)." in page.text
    assert 'id="roofline-a-title"' in text
    page_of([copy, copy], tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_runs_side_by_side_have_all_their_figures(runs, copy, tmp_path):
    summary = load_document(copy)
    changed_summary(copy, requests=summary["requests"] | {"finished": 5, "rejected": 7})
    _, page = page_of([runs["duplex"], copy], tmp_path)
    cells = page.text

    def row(label):
        start = cells.index(label)
        return [each for each in cells[start + 1 : start + 9] if each.strip()][:3]

    assert row("finished") == ["120", "5", figure(5 / 120) + "x"]
    assert row("rejected") == ["0", "7", "-"]
    assert row("steps")[0] == f"{summary['batch']['steps']:,}"
    assert row("TTFT within 40.0 ms")[2] == "1.00x"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("text", ["a: [", "- 1", "", "name: a\x07b"])
def test_a_scenario_that_cannot_be_read_spoils_no_comparison(runs, copy, tmp_path, text):
    (copy / "scenario.yaml").write_text(text)
    _, page = page_of([runs["aimc"], copy], tmp_path)
    assert any(each.startswith("Not known: ") and "scenario.yaml" in each for each in page.text)
    assert any("like for like is not known" in each for each in page.text)
    assert "The runs have the same settings." not in page.text


@pytest.mark.usefixtures("undrawn")
def test_settings_that_no_scenario_tells_are_not_called_the_same(copy, tmp_path):
    assert "The runs have the same settings." in page_of([copy, copy], tmp_path)[1].text
    (copy / "scenario.yaml").unlink()
    _, page = page_of([copy, copy], tmp_path)
    assert "The runs have the same settings." not in page.text
    assert any(each.startswith("Of settings only those in summaries are compared, none") for each in page.text)


@pytest.mark.usefixtures("undrawn")
def test_only_what_is_below_is_promised(copy, tmp_path):
    assert "save the scenario below" in page_of(copy, tmp_path)[0]
    (copy / "scenario.yaml").unlink()
    assert "save the scenario below" not in page_of(copy, tmp_path)[0]


def test_one_request_is_no_closed_loop(tmp_path):
    _, page = page_of(make_run(tmp_path / "run", "workload.num_requests=1"), tmp_path)
    assert "offered -" in page.text
    assert "closed loop" not in page.text


def test_facts_of_a_device_have_units(page_alone):
    _, page = page_alone("aimc")
    assert {"passive, W", "programming: time, s"} <= set(page.text)
