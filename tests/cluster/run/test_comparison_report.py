"""The table of a comparison: it fits, holds every run, and shows what differs."""

import pytest

from pimserve.cluster.run.compare import compare
from pimserve.device_models.registry import load_device
from pimserve.scheduler.config import SchedulerSpec
from tests.cluster.run.compared import SCENARIO, changed, on, report


@pytest.mark.medium
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("number", [2, 3, 5, 30])
def test_tables_fit_the_width_and_hold_every_run(save, width, number, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    runs = [save(f"run{index}", SCENARIO, throughput__requests_per_s=1.0 + index) for index in range(number)]
    text = report(compare(runs))
    assert max(map(len, text.splitlines())) <= width
    lines = [line.split() for line in text.splitlines() if line.startswith("requests/s")]
    assert len(lines) == -((1 - number) // {80: 2, 120: 4}[width])
    ratios = [cell for line in lines for cell in line[2:] if cell.endswith("x")]
    assert ratios == [f"{1 + index:.2f}x" if index < 9 else f"{1 + index:.1f}x" for index in range(1, number)]


def test_a_long_label_breaks_before_units_and_ratios_are_cut(save, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    unit = "experts digital units that many tiles wait for"
    runs = [save(name, kv__capacity_tokens=12_566_288, unit_busy_share={unit: 0.5}) for name in ("a", "b")]
    lines = report(compare(runs)).splitlines()
    assert max(map(len, lines)) <= 80
    cells = [line.split() for line in lines]
    assert ["A", "B", "B/A"] in cells
    (ttft,) = [each for each in cells if each[:2] == ["TTFT", "mean"]]
    assert ttft[2] in ("s", "ms")
    assert ttft[-1] == "1.00x"
    (capacity,) = [each for each in cells if each[:3] == ["KV", "cache,", "tokens"]]
    assert capacity[3:] == ["12,566,288", "12,566,288", "1.00x"]


def test_report_names_runs_values_and_differences(save):
    other = save("b", changed("run", seed=3), throughput__requests_per_s=9.5536)
    text = report(compare([save("a", SCENARIO), other]))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith("A example: mixtral-8x7b on 8 duplex")
    assert "requests/s 4.78 9.55 2.00x" in lines
    assert "TTFT mean ms 18.3 18.3 1.00x" in lines
    assert "SLO attainment >99.9 % >99.9 % 1.00x" in lines
    assert "Logic-PIM 44.2 % 44.2 % 1.00x" in lines
    assert "warning: not like for like, the runs differ in seed" in lines
    assert "run.seed 0 3" in lines


@pytest.mark.parametrize(
    "changes",
    [
        {"batching": "prefill_first"},
        {"policy": "sjf", "prediction_error": 0.5},
        {"kv_admission": "no_evict"},
        {"enable_prefix_caching": True, "prefix_cache_retention_interval": 64},
        {"early_rejection": True, "early_rejection_ttft_s": 2.0, "prefill_tokens_per_s": 1000.0},
        {"router": "least_outstanding", "report_interval_s": 0.5},
    ],
)
def test_runs_are_named_by_settings_of_the_scheduler_that_differ(save, changes):
    plain = SchedulerSpec()
    other = plain.model_copy(update=changes)
    runs = [
        save(name, {**SCENARIO, "scheduler": spec.model_dump(mode="json")})
        for name, spec in (("a", plain), ("b", other), ("c", plain))
    ]
    comparison = compare(runs)
    held = [
        ", ".join(f"{key} {getattr(spec, key)}" for key in sorted(changes) if getattr(spec, key) is not None)
        for spec in (plain, other, plain)
    ]
    assert comparison.named_settings() == tuple(held)
    lines = [" ".join(line.split()) for line in report(comparison).splitlines()]
    start, end = lines.index(next(line for line in lines if line.startswith("B "))), lines.index("")
    assert held[1] in " ".join(line for line in lines[start:end])
    assert compare([runs[0], runs[2]]).named_settings() == ("", "")


def test_settings_of_which_summaries_say_nothing_are_told(save):
    alone = save("alone")
    text = " ".join(report(compare([save("a", SCENARIO), alone])).split())
    assert (
        "note: of settings only those in summaries are compared, none of the scheduler: no scenario.yaml beside" in text
    )
    assert str(alone) in text.replace(" ", "")
    assert not compare([save("b", SCENARIO), save("c", SCENARIO)]).all_notes


def test_every_figure_of_the_devices_that_differs_is_listed(save):
    mine = {"preset": "h100", "name": "mine", "dram_efficiency": 1.0, "memory_gb_per_s": 4000}
    found = compare([save("a", on("h100")), save("b", on(mine))]).differences
    assert found == {
        "cluster.device.name": ("h100", "mine"),
        "cluster.device.dram_efficiency": (0.77, 1.0),
        "cluster.device.memory_gb_per_s": (3352.0, 4000.0),
        "cluster.device.area_mm2": (814.0, None),  # of a part with more GB/s they are not known
        "cluster.device.tdp_w": (700.0, None),
        "cluster.device.power.decode_w": (520.0, pytest.approx(115 + 405 * 4000 / 3352)),
    }


def test_devices_of_other_kinds_are_compared_in_full_and_shown_in_sections(save):
    devices = ("h100", "duplex", "aimc-realistic")
    comparison = compare([save(name, on(name)) for name in devices])
    prose = ("title", "sources", "assumptions")
    flat = [dict(_flattened(load_device(name).spec.model_dump(mode="json", exclude_none=True))) for name in devices]
    differing = {
        f"cluster.device.{path}"
        for path in {path for each in flat for path in each}
        if path not in prose and len({str(each.get(path)) for each in flat}) > 1
    }
    assert set(comparison.document()["differences"]) == differing
    assert comparison.differences["cluster.device.pim.flop_per_byte"] == (None, 8.0, None)
    shown = comparison.differences_by_section
    assert "bandwidth_multiple 4.0, " in shown["cluster.device.pim"][1]
    assert shown["cluster.device.pim"][::2] == (None, None)
    assert len(shown) < len(differing) / 2
    text = report(comparison)
    assert max(map(len, text.splitlines())) <= 80
    said = "".join(text.split())
    assert "flop_per_byte8.0" in said
    assert "pj_per_bit1.8125" in said


def test_five_runs_on_a_narrow_terminal_keep_values_whole(save, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    devices = ("h100", "duplex", "aimc-realistic", "h200", "h100")
    documents = [on(name) for name in devices]
    for index, document in enumerate(documents):
        document["cluster"]["replicas"] = 1 + index
    comparison = compare([save(f"run{index}", document) for index, document in enumerate(documents)])
    lines = report(comparison).splitlines()
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    for values in comparison.differences_by_section.values():
        for value in values:
            assert value is None or set(str(value).split()) <= words
    told = [" ".join(line.split()) for line in lines]
    assert "cluster.replicas 1 2 3 4 5" in told
    names = told.index("cluster.device.name")
    assert told[names + 1 : names + 5] == ["A, E h100", "B duplex", "C aimc-realistic", "D h200"]


def _flattened(document, above=""):
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{above}{key}.")
        else:
            yield above + key, value


def test_figures_of_the_whole_run_beside_those_of_a_window_are_pointed_out(save):
    whole = {"start_s": 0.0, "end_s": 634.6, "length_s": 634.6, "whole_run": True}
    runs = [save("a", window=whole), save("b", window=whole), save("c")]
    assert "whole runs" not in report(compare(runs[:2]))
    assert "of whole runs, all else of the measured windows" in " ".join(report(compare(runs)).split())


def test_a_device_may_differ_without_warning(save):
    text = report(compare([save("a", SCENARIO), save("b", changed("cluster", replicas=2))]))
    assert "note: the runs differ in" in text
    assert "warning" not in text


def test_a_unit_is_that_of_the_first_run_that_has_the_figure(save):
    runs = [save(name, energy__tdp_joules_per_output_token=value) for name, value in (("a", None), ("b", 0.005))]
    assert "at the devices' TDP mJ - 5.00 -" in " ".join(report(compare(runs)).split())


def test_what_a_run_warns_of_is_said_again(save):
    assumed = save("b", changed("cluster", replicas=2), warnings=["64 tiers are assumed"])
    lines = report(compare([save("a", SCENARIO), assumed])).splitlines()
    assert "warning: B: 64 tiers are assumed" in lines
