"""Runs side by side: ratios to the first, and what is said where they did not do the same."""

import io
import json

import pytest
import yaml

from pimserve.cluster.cli.comparison_report import comparison_report
from pimserve.cluster.cli.terminal import console, write
from pimserve.cluster.run.compare import Run, compare, compare_runs
from pimserve.cluster.run.placement_label import placement_label, with_labels
from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError
from tests.cluster.run.example_summary import example_summary

SCENARIO = {
    "name": "example",
    "model": {"name": "mixtral-8x7b", "hidden": 4096, "sources": ["a"]},
    "cluster": {"device": {"name": "duplex", "memory_gb": 80}, "replicas": 1},
    "workload": {"preset": "azure-conv-2023"},
    "slo": {"ttft_s": 2.0},
    "run": {"seed": 0},
    "output": {"steps": True},
}


@pytest.fixture
def save(tmp_path):
    """Write a results folder: changes to the example's summary, and the scenario beside it."""

    def write_run(name, scenario=None, **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(example_summary(**changes)))
        if scenario is not None:
            (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario))
        return folder

    return write_run


def changed(section, **values):
    return {**SCENARIO, section: {**SCENARIO[section], **values}}


def quantity(comparison, path):
    (found,) = [each for each in comparison.quantities if each.path == path]
    return found


def test_ratios_are_to_the_first(save):
    runs = [save(f"run{rate}", throughput__requests_per_s=rate) for rate in (4.0, 6.0, 1.0)]
    found = quantity(compare(runs), "throughput.requests_per_s")
    assert found.values == (4.0, 6.0, 1.0)
    assert found.ratios == (1.0, 1.5, 0.25)


def test_a_run_against_itself_is_all_ones_and_differs_in_nothing(save):
    run = save("run", SCENARIO)
    comparison = compare([run, run])
    assert {ratio for each in comparison.quantities for ratio in each.ratios} <= {1.0, None}
    assert all(each.values[0] == 0 for each in comparison.quantities if None in each.ratios)
    assert not comparison.differences
    assert not comparison.unlike


def test_no_ratio_to_nothing(save):
    runs = [
        save("a", requests__preempted=0, slo__attainment=None, offered_requests_per_s=None),
        save("b", requests__preempted=7, slo__attainment=0.5, offered_requests_per_s=None),
    ]
    comparison = compare(runs)
    assert quantity(comparison, "requests.preempted").ratios == (None, None)
    assert quantity(comparison, "slo.attainment").values == (None, 0.5)
    assert "offered_requests_per_s" not in {each.path for each in comparison.quantities}


def test_units_of_all_runs_are_compared(save):
    runs = [save("duplex"), save("gpu", unit_busy_share={"xpu": 0.5, "tiles": 0.1})]
    comparison = compare(runs)
    assert quantity(comparison, "unit_busy_share.logic_pim").values == (0.44158, None)
    assert quantity(comparison, "unit_busy_share.tiles").values == (None, 0.1)


@pytest.mark.parametrize(
    ("other", "differences", "unlike"),
    [
        (changed("run", seed=3), {"run.seed": (0, 3)}, ("seed",)),
        (
            changed("workload", preset=None, num_requests=10),
            {"workload.num_requests": (None, 10), "workload.preset": ("azure-conv-2023", None)},
            ("workload",),
        ),
        (changed("slo", ttft_s=1.0), {"slo.ttft_s": (2.0, 1.0)}, ("SLO",)),
        (changed("slo", preset="mlperf"), {}, ()),
        (changed("model", hidden=8192), {"model.hidden": (4096, 8192)}, ("model",)),
        (
            changed("model", name="grok-1", hidden=6144),
            {"model.name": ("mixtral-8x7b", "grok-1")},
            ("model",),
        ),
        (
            changed("cluster", device={"name": "h100", "memory_gb": 90}, replicas=2),
            {
                "cluster.device.name": ("duplex", "h100"),
                "cluster.device.memory_gb": (80, 90),
                "cluster.replicas": (1, 2),
            },
            (),
        ),
        (changed("model", sources=["b"]), {}, ()),
        ({**SCENARIO, "name": "other", "output": {"steps": False}}, {}, ()),
    ],
)
def test_what_differs_is_listed(save, other, differences, unlike):
    comparison = compare([save("a", SCENARIO), save("b", other)])
    assert comparison.differences == differences
    assert comparison.unlike == unlike


def test_other_versions_of_the_simulator_are_not_alike(save):
    comparison = compare([save("a", SCENARIO), save("b", SCENARIO, simulator__version="0.2.0")])
    assert comparison.differences == {"simulator.version": ("0.1.0", "0.2.0")}
    assert comparison.unlike == ("version",)


def test_without_a_scenario_the_summaries_tell(save):
    first = save("a", SCENARIO) / "summary.json"
    alone = save("b", seed=8, device="h100", workload="trace.csv")
    comparison = compare([first, alone])
    assert comparison.differences == {
        "cluster.device.name": ("duplex", "h100"),
        "run.seed": (7, 8),
        "workload": ("azure-conv-2023", "trace.csv"),
    }
    assert comparison.unlike == ("workload", "seed")


def test_document_is_strict_json(save):
    comparison = compare(
        [save("a", SCENARIO), save("b", changed("run", seed=3), energy__joules_per_output_token=0.62202)]
    )
    document = json.loads(json.dumps(comparison.document(), allow_nan=False))
    assert [run["place"].rpartition("/")[2] for run in document["runs"]] == ["a", "b"]
    assert document["quantities"]["energy.joules_per_output_token"]["ratios"] == [1.0, 2.0]
    assert document["differences"] == {"run.seed": [0, 3]}
    assert document["not_like_for_like"] == ["seed"]


def test_two_runs_are_needed(save):
    with pytest.raises(InputError, match="two runs"):
        compare([save("a")])


def test_a_folder_without_results_is_named(save, tmp_path):
    with pytest.raises(InputError, match="empty"):
        compare([save("a"), tmp_path / "empty"])


def test_a_foreign_summary_is_compared_as_far_as_it_goes():
    mine, foreign = map(summary_of_document, (example_summary(), {"requests": 3, "kv": None}))
    comparison = compare_runs((Run("a", mine), Run("b", foreign)), [{}, {}])
    assert {each.values[1] for each in comparison.quantities} == {None}


def report(comparison):
    file = io.StringIO()
    write(comparison_report(comparison, console(file)), file)
    return file.getvalue()


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


def on(device):
    """The scenario on a device, written out as runs write it."""
    return changed("cluster", device=load_device(device).spec.model_dump(mode="json", exclude_none=True))


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


def test_energy_with_and_without_passive_power_is_not_alike(save):
    whole = {"joules": 900.0, "passive_joules": 810.0, "joules_per_output_token": 0.2}
    whole |= {"active_joules_per_output_token": 0.02, "passive_joules_per_output_token": 0.18}
    whole = {**example_summary()["energy"], **whole, "passive_power": "counted"}
    comparison = compare([save("without", SCENARIO), save("with", SCENARIO, energy=whole)])
    assert comparison.unlike == ("whether energy includes passive power",)
    assert quantity(comparison, "energy.passive_joules_per_output_token").values == (None, 0.18)
    text = " ".join(report(comparison).split())
    assert "passive mJ - 180 -" in text
    assert "active mJ 311 20.0 0.06" in text
    assert not compare([save("a", SCENARIO, energy=whole), save("b", SCENARIO, energy=whole)]).unlike


def test_leaving_passive_power_out_is_named_once(save):
    whole = {**example_summary()["energy"], "passive_joules": 810.0, "passive_power": "counted"}
    settings = [{**SCENARIO, "costs": {"passive_power": value}} for value in (True, False)]
    comparison = compare([save("with", settings[0], energy=whole), save("without", settings[1])])
    assert comparison.unlike == ("whether energy includes passive power",)
    assert comparison.differences == {"costs.passive_power": (True, False)}
    part = {**whole, "passive_power": "partly_known"}
    runs = [save(name, SCENARIO, energy=energy) for name, energy in (("all", whole), ("part", part))]
    assert compare(runs).unlike == comparison.unlike


def test_another_precision_is_not_alike(save):
    analog = {"weights": "5-bit", "routed_weights": "5-bit", "kv_cache": "8-bit"}
    comparison = compare([save("a", SCENARIO), save("b", SCENARIO, precision=analog)])
    assert comparison.unlike == (
        "precision of weights (bf16 against 5-bit)",
        "precision of routed weights (fp8 against 5-bit)",
        "precision of KV cache (bf16 against 8-bit)",
    )
    text = " ".join(report(comparison).split())
    assert "not like for like, the runs differ in precision of weights (bf16 against 5-bit)," in text
    one = {"weights": "bf16", "routed_weights": "fp8", "kv_cache": "fp8"}
    assert compare([save("c", SCENARIO), save("d", SCENARIO, precision=one)]).unlike == (
        "precision of KV cache (bf16 against fp8)",
    )
    assert not compare([save("e", SCENARIO, precision=one), save("f", SCENARIO, precision=one)]).unlike


def test_precision_of_pools_is_compared(save):
    def pooled(name, *weights):
        held = [{"precision": {"weights": each, "routed_weights": None, "kv_cache": "fp8"}} for each in weights]
        return save(name, SCENARIO, pools={"prefill": held[0], "decode": held[1], "handover": {}})

    found = compare([pooled("a", "bf16", "bf16"), pooled("b", "bf16", "5-bit")])
    assert found.unlike == ("precision of weights (bf16 against bf16 + 5-bit)",)


def test_silicon_and_tdp_are_compared(save):
    first = save("a", silicon_mm2=3256.0, throughput__output_tokens_per_s_per_mm2=0.25)
    second = save("b", energy__tdp_joules_per_output_token=3.0, silicon_mm2=814.0)
    comparison = compare([first, second])
    assert quantity(comparison, "silicon_mm2").ratios == (1.0, 0.25)
    assert quantity(comparison, "throughput.output_tokens_per_s_per_mm2").values == (0.25, None)
    assert "at the devices' TDP J - 3.00 -" in " ".join(report(comparison).split())


def test_a_unit_is_that_of_the_first_run_that_has_the_figure(save):
    runs = [save(name, energy__tdp_joules_per_output_token=value) for name, value in (("a", None), ("b", 0.005))]
    assert "at the devices' TDP mJ - 5.00 -" in " ".join(report(compare(runs)).split())


def test_what_a_run_warns_of_is_said_again(save):
    assumed = save("b", changed("cluster", replicas=2), warnings=["64 tiers are assumed"])
    lines = report(compare([save("a", SCENARIO), assumed])).splitlines()
    assert "warning: B: 64 tiers are assumed" in lines


def test_ideal_beside_measured_is_pointed_out(save):
    measured = {"setting": "measured", "gpu": "h100", "backend": "vllm", "version": "1", "frontend_s": 0.01}
    runs = [save("a"), save("b", costs=measured)]
    assert "the runs differ in the setting of their costs (ideal against measured)" in " ".join(
        report(compare(runs)).split()
    )
    assert "ideal against measured" not in report(compare([runs[1], save("c", costs=measured)]))
    scenarios = [
        save("d", {**SCENARIO, "costs": {"setting": "ideal"}}),
        save("e", {**SCENARIO, "costs": measured}, costs=measured),
    ]
    assert "setting of their costs" in " ".join(report(compare(scenarios)).split())


def test_two_backends_are_pointed_out(save):
    measured = {"setting": "measured", "gpu": "h100", "version": "1"}
    runs = [save(name, costs=measured | {"backend": name}) for name in ("vllm", "trtllm")]
    assert "the runs differ in costs" in report(compare(runs))


def test_a_placement_that_not_all_have_is_one_line():
    of_decode = "cluster.pools.decode.placement"
    differences = {
        "cluster.placement.experts.device.area.tile_mm2": (1.0, None),
        "cluster.placement.experts.device.name": ("aimc-realistic", None),
        "cluster.placement.link.gb_per_s": (100.0, None),
        f"{of_decode}.experts": (None, "attention"),
        f"{of_decode}.micro_batches": (None, 1),
        "cluster.replicas": (1, 2),
    }
    assert list(with_labels(differences).items()) == [
        ("cluster.placement", ("experts on aimc-realistic", None)),
        (of_decode, (None, "experts with attention")),
        ("cluster.replicas", (1, 2)),
    ]


def test_placements_that_all_have_are_told_setting_by_setting():
    differences = {
        "cluster.placement.link.gb_per_s": (100.0, 50.0),
        "cluster.placement.experts.device.kernels": ("h100", None),
    }
    assert with_labels(differences) == differences


@pytest.mark.parametrize(
    ("placement", "label"),
    [
        ({"experts": {"device": "h100"}}, "experts on h100"),
        ({"experts": {}}, "experts on devices of their own"),
        (
            {"attention": {"device": "h100"}, "hot_experts": {"device": {"preset": "duplex"}}, "experts": {}},
            "attention on h100, hot experts on duplex, experts on devices of their own",
        ),
        ({"device": "h100", "experts": "ep"}, ""),  # a cluster
    ],
)
def test_placements_have_labels(placement, label):
    assert placement_label(placement) == label
