"""Runs side by side: ratios to the first, what differs, and what is said where they did not do the same."""

import json

import pytest

from pimserve.cluster.run.compare import Run, compare, compare_runs
from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.errors import InputError
from tests.cluster.run.compared import SCENARIO, changed, quantity, report
from tests.cluster.run.example_summary import example_summary


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
    assert comparison.all_notes == (f"{run}: one run, which is compared with itself",)


def test_a_run_that_is_given_by_several_names_is_pointed_out(save, tmp_path):
    runs = [save("one", SCENARIO), save("two", SCENARIO)]
    link = tmp_path / "link"
    link.symlink_to(runs[0])
    assert compare(runs).all_notes == ()
    (said,) = compare([*runs, link]).all_notes
    assert said == f"{runs[0]} and {link}: one run, which is compared with itself"


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
