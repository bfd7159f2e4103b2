"""What `pimserve` prints: all figures are there, and the terminal's width is kept."""

import io

import pytest
from rich.cells import cell_len

from pimserve.cluster.base.figures import WHY_REJECTED, share
from pimserve.cluster.cli.findings_table import findings_report
from pimserve.cluster.cli.render import summary_report
from pimserve.cluster.cli.terminal import write
from pimserve.cluster.run.read_summary import load_summary, summary_of_document
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.validation.targets import Finding
from tests.cluster.documents import run
from tests.cluster.run.example_summary import example_summary, without_numbers


def printed(what, width=80, monkeypatch=None):
    file = io.StringIO()
    if monkeypatch is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    write(what, file)
    return file.getvalue()


def report(**changes):
    return printed(summary_report(summary_of_document(example_summary(**changes))))


def line_with(text, *words):
    """The one line that holds all words, its runs of blanks made one."""
    found = [" ".join(line.split()) for line in text.splitlines() if all(word in line for word in words)]
    assert len(found) == 1, (words, found)
    return found[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["example:"], "example: mixtral-8x7b on 8 duplex"),
        (["seed"], "2 replicas of 4 (nodes 1, devices per node 4, tensor 4, experts tp), seed 7"),
        (["measured"], "measured: 20.0 s to 633 s of 635 s, in which 2,934 requests arrived"),
        (["total"], "total 3,000 requests/s 4.78"),
        (["offered"], "finished 2,990 offered requests/s 4.74"),
        (["rejected"], "rejected 4 output tokens/s 1,006"),
        (["unfinished"], "unfinished 6 output tokens/s per device 126"),
        (["preempted"], "preempted 9 times, 5 energy per token, whole run 311 mJ"),
        (["latency"], "latency mean p50 p90 p99 n"),
        (["TTFT", "2,934"], "TTFT ms 18.3 15.5 36.6 55.8 2,934"),
        (["ITL"], "ITL ms 3.46 3.32 3.90 14.3 613,774"),
        (["E2E"], "E2E s 0.744 0.459 1.60 2.18 2,934"),
        (["queue"], "queue s 0 0 0 0 2,934"),
        (["TTFT <="], "TTFT <= 2 s >99.9 % batch, mean requests 3.32"),
        (["TPOT <="], "TPOT <= 200 ms 100 % steps 189,660"),
        (["attainment"], "attainment >99.9 % steps of decoding only 98.1 %"),
        (["goodput"], "goodput, requests/s 4.79 KV cache in use, mean 0.3 %"),
        (["peak"], "censored, TPOT 2 KV cache in use, peak 1.4 %"),
        (["xPU"], "xPU 14.1 % 14.1 % FC 9.5 % 10.0 %"),
        (["Logic-PIM"], "Logic-PIM 44.2 % 47.1 % attention, prefill <0.1 % 0.2 %"),
        (["MoE"], "any 92.9 % MoE 51.6 % 89.0 %"),
        (["communication"], "communication 38.3 % 0 %"),
        (["simulated"], "simulated in 0.821 s: 230,893 steps/s, 3,652 requests/s"),
        (["process"], "the process took 1.40 s and 89.7 MB"),
    ],
)
def test_report_shows(words, line):
    assert line_with(report(), *words) == line


def test_report_of_the_whole_run():
    changed = report(window={"start_s": 0, "end_s": 634.6, "length_s": 634.6, "whole_run": True})
    assert "measured: the whole run of 635 s" in changed
    assert changed.count("whole run") == 1
    assert line_with(changed, "energy per").endswith("energy per output token 311 mJ")


def test_figures_of_the_whole_run_say_so_beside_those_of_a_window():
    text = report()
    assert line_with(text, "throughput and energy") == "requests, whole run throughput and energy"
    assert line_with(text, "SLO", "load") == "SLO load, whole run"
    assert line_with(text, "busy time") == "busy time, whole run mean busiest share of whole run time energy"


def test_p99_of_few_samples_is_starred_and_explained():
    text = report(latency_s__ttft__n=999, latency_s__tpot__n=1000)
    assert "55.8*" in line_with(text, "TTFT", "999")
    assert "4.61*" not in text
    assert "* of few samples: fewer than ten lie beyond it" in text
    assert "*" not in report()


def asked(**changes):
    """A summary with percentiles and limits of them that nobody else has."""
    document = example_summary(**changes)
    for latency in document["latency_s"].values():
        latency["percentiles"] = {"p50": latency["p50"], "p99.9": 1.25}
    limit = {"limit": 2.0, "relative_margin": 0.375, "n": 2934, "enough_samples": False}
    document["slo"]["at_percentiles"] = {
        "ttft_p99.9_s": limit | {"measured": 1.25, "passed": True, "margin": 0.75},
        "itl_p5_s": limit | {"measured": None, "passed": False, "margin": None, "relative_margin": None},
        "e2e_p50_s": limit | {"measured": 2.5, "passed": False, "margin": -0.5, "relative_margin": -0.25},
    }
    widths = {"mean": 0.02, "percentiles": {"p50": 0.01, "p99.9": None}}
    document["ci95"] = {
        "latency_s": {"ttft": widths},
        "throughput": {"requests_per_s": 0.25},
        "slo": {"goodput_requests_per_s": 0.0001},
    }
    return document


@pytest.mark.parametrize(
    "line",
    [
        "latency mean p50 p99.9 n",
        "TTFT s 0.0183 0.0155 1.25* 2,934",
        "+- 0.0200 0.0100 -",
        "finished 2,990 +- 0.250",
        "+- 0 KV cache in use, peak 1.4 %",
        "limits limit measured margin relative n verdict",
        "TTFT p99.9 2.00 s 1.25 s* 750 ms 37.5 % 2,934 pass",
        "ITL p5 2.00 s - - - 2,934 fail",
        "E2E p50 2.00 s 2.50 s* -500 ms -25.0 % 2,934 fail",
        "+- 95 % confidence interval by batch means (-: the run is too short for one)",
    ],
)
def test_percentiles_limits_and_intervals_that_were_asked_for(line):
    text = printed(summary_report(summary_of_document(asked())))
    assert line in [" ".join(each.split()) for each in text.splitlines()], text


def test_many_percentiles_take_several_tables():
    document = asked()
    for latency in document["latency_s"].values():
        latency["percentiles"] = {f"p{percent}": 1.0 for percent in range(10, 99, 10)} | {"p99.9": 1.0}
    text = printed(summary_report(summary_of_document(document)))
    heads = [line.split() for line in text.splitlines() if line.startswith("latency")]
    assert [len(head) for head in heads] == [8, 8]
    names = {"p99.9", *(f"p{percent}" for percent in range(10, 99, 10))}
    assert {word for head in heads for word in head} == {"latency", "mean", "n"} | names
    assert max(map(cell_len, text.splitlines())) <= 80


def test_a_run_without_intervals_says_so():
    assert "no confidence intervals: the run is too short for them" in report()


def test_stability_is_said():
    assert line_with(report(), "stability:") == "stability: steady"
    assert line_with(report(stability="too short to tell"), "stability:") == "stability: too short to tell"


def test_reasons_and_censored_requests_are_said_where_there_are_any():
    text = report()
    assert line_with(text, "longer than max_model_len").startswith("longer than max_model_len 4")
    assert "KV cache holds" not in text
    assert line_with(text, "censored, TPOT").startswith("censored, TPOT 2")
    assert line_with(text, "censored, all").startswith("censored, all 2")
    assert "censored, TTFT" not in text
    assert "hides them" not in text
    assert "left out, as the end of the run hides them: E2E 7" in report(latency_s__e2e__censored=7)


def test_that_nothing_finished_comes_first():
    said = ["no request finished", "something else"]
    first, second, *_ = report(requests__finished=0, warnings=said).splitlines()
    assert (first, second) == ("warning: no request finished", "warning: something else")
    assert report(warnings=said).startswith("example")


def test_warnings_are_wrapped_under_their_text():
    said = ["one is short", "another " + "goes on and on " * 8 + "to its end"]
    text = report(warnings=said)
    lines = text.splitlines()
    first = lines.index("warning: one is short")
    assert lines[first + 1].startswith("warning: another goes on")
    assert lines[first + 2].startswith("         ")
    assert lines[first + 2].strip()
    assert " ".join(said[1].split()) in " ".join(text.split())
    assert "warning" not in report()


def test_passive_power_is_a_share_of_the_energy_without_time():
    text = report(energy__passive_joules=922.4)
    assert line_with(text, "passive power") == "passive power - 92.2 %"
    assert "passive power" not in report()


def test_energy_per_token_is_active_and_passive():
    changes = {"joules": 1000.0, "passive_joules": 600.0, "joules_per_output_token": 0.5}
    changes |= {"active_joules_per_output_token": 0.2, "passive_joules_per_output_token": 0.3}
    text = report(**{f"energy__{key}": value for key, value in changes.items()})
    assert line_with(text, "energy per").endswith("energy per token, whole run 500 mJ")
    assert line_with(text, "active").endswith("active 200 mJ")
    assert line_with(text, "passive", "mJ").endswith("passive 300 mJ")
    assert line_with(report(), "passive").endswith("passive left out")
    assert line_with(report(energy__passive_power="not_known"), "passive").endswith("passive not known")


def test_precision_and_another_policy_stand_in_the_heading():
    assert "policy" not in report(policy="fcfs")
    assert line_with(report(policy="sjf"), "policy") == "policy: sjf"
    assert line_with(report(), "precision") == "precision: weights bf16, routed weights fp8, KV cache bf16"
    dense = {"weights": "5-bit", "routed_weights": None, "kv_cache": "8-bit"}
    assert line_with(report(precision=dense), "precision") == "precision: weights 5-bit, KV cache 8-bit"


def test_silicon_shows_where_it_is_known():
    text = report(silicon_mm2=4305.2, throughput__output_tokens_per_s_per_mm2=0.2219)
    assert line_with(text, "silicon") == "silicon, mm2 4,305"
    assert line_with(text, "per mm2") == "output tokens/s per mm2 0.222"
    assert "mm2" not in report()


def test_facts_of_the_devices():
    facts = {
        "mapping": "moe_separated",
        "tiers_used": 178416,
        "passive_w": 139.104,
        "gated": False,
        "programming": {"time_s": 20.97152, "joules": 186.8101, "lifetime_years": 410677.6, "pulses_per_device": 20.0},
        "event_model_over_plan": [0.78, 1.05],
        "noise": None,
    }
    text = report(device_facts=facts)
    assert line_with(text, "mapping ") == "mapping moe_separated"
    assert line_with(text, "tiers used") == "tiers used 178,416"
    assert line_with(text, "passive ", " W") == "passive 139 W"
    assert line_with(text, "gated") == "gated no"
    assert line_with(text, "event model") == "event model over plan 0.780, 1.05"
    assert line_with(text, "noise") == "noise -"
    joined = " ".join(text.split())
    assert "programming time 21.0 s; joules 187; lifetime 410,678 years; pulses per device 20 " in joined
    assert "device\n" not in report()


@pytest.mark.parametrize("width", [80, 120])
def test_facts_and_warnings_keep_the_width(width, monkeypatch):
    facts = {"long": {f"key_{index}": "word " * 9 for index in range(9)}, "list": list(range(100)), "word": "x" * 200}
    summary = summary_of_document(example_summary(device_facts=facts, warnings=["y" * 300, "z " * 99]))
    text = printed(summary_report(summary), width, monkeypatch)
    assert max(map(cell_len, text.splitlines())) <= width


def test_cut_requests_show_only_when_there_are_some():
    assert "cut at max_model_len" not in report()
    assert "17" in line_with(report(requests__truncated=17), "cut at max_model_len")


def test_classes_show_only_when_there_are_some():
    assert "class " not in report()


def test_what_belongs_to_no_operator_shows_only_where_costs_have_it():
    nothing = {"dram": 0.0, "compute": 0.0}
    assert "norms, host" not in report(time_share__step=0.0, energy__joules_by_category__step=nothing)
    text = report(time_share__step=0.25, energy__joules_by_category__step=nothing)
    assert line_with(text, "norms, host").split()[2:4] == ["25.0", "%"]


def test_what_it_took_to_rebalance_experts_stands_beside_operators():
    assert "expert rebalancing" not in report()
    joules = {"dram": 3.0, "compute": 0.0}
    text = report(energy__joules_by_category__expert_rebalancing=joules, energy__joules=12.0)
    assert line_with(text, "expert rebalancing").split()[2:5] == ["-", "25.0", "%"]


def test_report_without_limits():
    slo = {"limits": {}, "met": {}, "attainment": None, "attainment_of_completed": None, "goodput_requests_per_s": None}
    text = report(slo=slo)
    assert "no limits set" in text
    assert "attainment" not in text
    at = {"limit": 2.0, "measured": 1.5, "passed": True, "margin": 0.5, "relative_margin": 0.25, "n": 9}
    text = report(slo=slo | {"at_percentiles": {"ttft_p99_s": at | {"enough_samples": False}}})
    assert "no limits of single requests" in text
    assert line_with(text, "TTFT", " pass").split()[1:4] == ["p99", "2.00", "s"]


def test_what_does_not_apply_is_a_dash():
    nothing = {"mean": None, "p50": None, "p90": None, "p99": None, "n": 0}
    changes = {key: without_numbers(example_summary()[key]) for key in ("throughput", "batch", "kv", "time_share")}
    text = report(offered_requests_per_s=None, busy_share=None, latency_s={"ttft": nothing}, **changes)
    assert line_with(text, "offered").endswith("offered requests/s -")
    assert line_with(text, "TTFT", " 0").split()[:6] == ["TTFT", "-", "-", "-", "-", "0"]
    assert line_with(text, "any").startswith("any -")
    assert "None" not in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_report_keeps_the_width(width, monkeypatch):
    latency = dict.fromkeys(("mean", "p50", "p90", "p99"), 1e6) | {"n": 10**9}
    requests = dict.fromkeys(example_summary()["requests"], 20_000_000)
    huge = example_summary(
        requests=requests | {"rejected_by_reason": dict.fromkeys(WHY_REJECTED, 20_000_000)},
        throughput=dict.fromkeys(example_summary()["throughput"], 123_456_789.0),
        kv__capacity_tokens=9_876_543_210,
        batch__steps=9_876_543_210,
        latency_s=dict.fromkeys(example_summary()["latency_s"], latency),
    )
    text = printed(summary_report(summary_of_document(huge)), width, monkeypatch)
    assert max(map(cell_len, text.splitlines())) <= min(width, 120)
    for number in ("20,000,000", "123,456,789", "9,876,543,210", "1,000,000", "1,000,000,000"):
        assert number in text


def test_piped_text_is_plain(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    text = report()
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_markup_in_names_is_text():
    assert "[red]x[/red] :smile:" in report(name="[red]x[/red] :smile:")


def finding(**changes):
    plain = {
        "id": "F11",
        "quantity": "throughput ratio",
        "case": "Mixtral, batch 32",
        "published": 2.0,
        "ours": 2.1,
        "ratio": 1.05,
        "tolerance": 0.1,
        "tolerance_kind": "rel",
        "passed": True,
        "method": "closed form",
        "note": "",
    }
    return Finding(**{**plain, **changes})


def test_findings_list_every_target_and_count():
    text = printed(
        findings_report(
            [
                finding(),
                finding(id="F12", tolerance_kind="abs", tolerance=0.03, method="engine"),
                finding(id="F13", published=(1.5, 1.9), tolerance_kind="interval", tolerance=0.0),
            ]
        )
    )
    assert line_with(text, "F11") == "F11 2.00 2.10 1.05 +-10 % ok"
    assert line_with(text, "F12") == "F12 2.00 2.10 1.05 +-0.03 ok"
    assert line_with(text, "F13") == "F13 1.50..1.90 2.10 1.05 +-0 % ok"
    assert text.splitlines()[-1] == "3 of 3 figures met (2 by closed form, 1 by engine)"
    assert "missed" not in text


def test_missed_findings_come_with_their_reason():
    text = printed(
        findings_report([finding(), finding(id="F14", ours=3.0, ratio=1.5, passed=False, note="the paper rounds up")])
    )
    assert line_with(text, "F14", "1.50").endswith("missed")
    assert "missed: F14" in text
    assert "throughput ratio (Mixtral, batch 32; closed form)" in text
    assert "the paper rounds up" in text
    assert text.splitlines()[-1].startswith("1 of 2 figures met")


def test_the_heading_says_what_of_the_devices_was_measured():
    timed = {"setting": "measured", "gpu": "h100", "backend": "vllm", "version": "0.24.0"}

    def third_line(costs):
        return report(costs=costs).splitlines()[2]

    assert third_line({"setting": "ideal"}) == "costs: ideal devices"
    assert third_line({**timed, "measured": "all"}) == "costs: measured on h100 with vllm 0.24.0"
    assert (
        third_line({**timed, "measured": "host"}) == "costs: host measured on h100 with vllm 0.24.0, the rest projected"
    )


def test_both_groups_of_devices_and_their_link_are_shown(tmp_path):
    placement = "{experts: {device: aimc-realistic}, micro_batches: auto, link: {gb_per_s: 80}}"
    overrides = ["cluster.devices_per_node=2", f"cluster.placement={placement}", "workload.num_requests=5"]
    run(prepare(load_scenario(None, ["name=example", *overrides])), tmp_path / "r")
    summary = load_summary(tmp_path / "r")
    text = printed(summary_report(summary))
    assert line_with(text, "example:") == "example: mixtral-8x7b on 2 duplex + 6 aimc-realistic"
    assert line_with(text, "1 replica of").endswith(
        "of 8 (attention 2: nodes 1, devices per node 2, tensor 2, experts ep;"
    )
    assert line_with(text, "experts 6:") == "experts 6: spread layers), seed 0"
    groups = summary.groups
    for label, name in (("working", "working"), ("other group", "other_group"), ("without a step", "work")):
        shares = [getattr(group.shares_of_time, name) for group in (groups.attention, groups.experts)]
        assert line_with(text, label).endswith(" ".join(map(share, shares)))
    units = [line.split()[0] for line in text.split("busy time")[1].split("any ")[0].splitlines()[1:]]
    assert units == ["of", "xPU", "Logic-PIM", "link", "of", "busiest", "digital", "between", "dispatch", "combine"]
    assert "80 GB/s for each device of attention" in " ".join(text.split())
    assert line_with(text, "256 requests").count("ms") == 4
    assert line_with(text, "1 request ").endswith("- - -")
    assert line_with(text, "tiers used") == "tiers used 172,032"
    assert "{" not in text
    assert all(cell_len(line) <= 80 for line in text.splitlines())
