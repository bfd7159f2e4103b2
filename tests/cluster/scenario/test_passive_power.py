"""Passive power: what devices draw whether they work or not, by one rule for every device, setting and run."""

from collections.abc import Sequence
from typing import Any

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.catalogue import device_names
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError
from tests.cluster.documents import serve

ONE = ["model=llama-3.1-8b", "cluster.devices_per_node=1", "workload.num_requests=1", "output.steps=false"]
ROUNDING = 1 - 1e-9
OWN = (
    "kind: gpu, name: mine, memory_gb: 192, memory_gb_per_s: 8000, peak_tflop_per_s: {bf16: 2000}, "
    "link_gb_per_s: 900, link_latency_us: 3, "
    "energy: {xpu_pj_per_bit: 3.48, row_activation_nj: 0.909, mac_pj: 0.46}"
)


def summary_of(*overrides: str, base: Sequence[str] = ONE) -> dict[str, Any]:
    return serve(prepare(load_scenario(None, [*base, *overrides])))[0]


def passive_w(device: str) -> float:
    found: float = load_device(device).key_figures["passive_w"]
    return found


def alone(device: str) -> float:
    """Mean power of one device with one request, W."""
    found = summary_of(f"cluster.device={device}")
    return float(found["energy"]["joules"] / found["end_s"])


def test_a_gpu_with_one_request_draws_at_least_what_it_draws_idle() -> None:
    # Without passive power: 79 W, where its own description says 115 W.
    without = summary_of("cluster.device=h100", "costs.passive_power=false")
    active_w = without["energy"]["joules"] / without["end_s"]
    assert active_w < passive_w("h100") == 115
    assert alone("h100") == pytest.approx(115 + active_w)


def test_gpus_of_one_path_energy_differ() -> None:
    tokens = [summary_of(f"cluster.device={gpu}")["energy"]["joules_per_output_token"] for gpu in ("h100", "b200")]
    assert tokens[0] != pytest.approx(tokens[1], rel=1e-6)


@pytest.mark.parametrize("setting", ["ideal", "measured"])
@pytest.mark.parametrize("device", device_names())
def test_every_device_states_it_and_every_run_counts_it(device: str, setting: str) -> None:
    given = [f"cluster.device={device}", f"costs.setting={setting}", "cluster.replicas=3", "workload.num_requests=2"]
    whole, active = summary_of(*given), summary_of(*given, "costs.passive_power=false")
    energy = whole["energy"]
    assert passive_w(device) > 0
    # Three replicas, of which one never has a request.
    assert energy["passive_joules"] == pytest.approx(3 * passive_w(device) * whole["end_s"], rel=1e-6)
    assert energy["joules"] == pytest.approx(energy["active_joules"] + energy["passive_joules"], rel=1e-12)
    tokens = whole["tokens"]["output"]
    for part in ("joules", "active_joules", "passive_joules"):
        assert energy[f"{part}_per_output_token"] == pytest.approx(energy[part] / tokens, rel=1e-12)
    assert energy["passive_power"] == "counted"
    assert not any("not known" in warning for warning in whole["warnings"])
    # Leaving it out changes nothing else.
    assert active["digest"] == whole["digest"]
    assert active["energy"]["joules"] == active["energy"]["active_joules"] == energy["active_joules"]
    assert active["energy"]["passive_joules"] is active["energy"]["passive_joules_per_output_token"] is None
    assert active["energy"]["passive_power"] == "left_out"
    assert not any("passive power" in warning for warning in active["warnings"])


@pytest.mark.medium
@pytest.mark.parametrize(("model", "devices"), [("gpt2-medium", 1), ("mixtral-8x7b", 8), ("llama-3.1-70b", 16)])
@pytest.mark.parametrize("device", device_names())
def test_no_energy_below_idle_power_times_time(device: str, model: str, devices: int) -> None:
    # Plans of all models: tests/device_models/test_devices.py; runs of any plan: tests/scheduler/test_laws.py.
    found = summary_of(
        f"model={model}", f"cluster.device={device}", f"cluster.devices_per_node={devices}", "workload.num_requests=3"
    )
    least = devices * passive_w(device) * found["end_s"]
    assert found["energy"]["joules"] > found["energy"]["passive_joules"] >= least * ROUNDING
    assert found["tokens"]["output"] > 0


def test_it_counts_as_long_as_the_run_takes() -> None:
    base = [*ONE, "cluster.device=h100", "workload.num_requests=30"]
    slow = ["workload.arrival={process: poisson, rate_per_s: 0.1}"]
    fast = ["workload.arrival={process: poisson, rate_per_s: 10}"]
    slowly, quickly = (summary_of(*each, base=base) for each in (slow, fast))
    assert slowly["energy"]["passive_joules"] == pytest.approx(115 * slowly["end_s"])
    assert slowly["energy"]["passive_joules"] > 20 * quickly["energy"]["passive_joules"]
    # A device that is down is in its place, and draws it too.
    failed = ["cluster.replicas=2", "faults.events=[{kind: fail, at_s: 1, replica: 0, device: 0, for_s: 1}]"]
    found = summary_of(*fast, *failed, base=base)
    assert found["energy"]["passive_joules"] == pytest.approx(2 * 115 * found["end_s"])


def assumed(summary: dict[str, Any]) -> str:
    return " ".join(summary["device_facts"].get("assumptions", ()))


def test_an_own_device_that_does_not_state_it_has_that_of_its_kind_and_says_so() -> None:
    found = summary_of(f"cluster.device={{{OWN}}}")
    assert found["energy"]["passive_joules"] == pytest.approx(115 * found["end_s"])
    assert "taken over from h100: " in assumed(found)
    assert "power.idle_w 115" in assumed(found)
    stated = summary_of(f"cluster.device={{{OWN}, power: {{idle_w: 40}}}}")
    assert stated["energy"]["passive_joules"] == pytest.approx(40 * stated["end_s"])
    assert "power." not in assumed(stated)


def test_an_own_memory_side_unit_has_that_of_the_preset_and_says_so() -> None:
    pim = "pim: {bandwidth_multiple: 4, flop_per_byte: 8%s}"
    own = OWN.replace("kind: gpu", "kind: duplex").replace("memory_gb_per_s: 8000", "memory_gb_per_s: 3352")
    found = summary_of(f"cluster.device={{{own}, {pim % ''}}}")
    assert found["energy"]["passive_joules"] == pytest.approx((115 + 5.34) * found["end_s"], rel=1e-4)
    assert "taken over from duplex: " in assumed(found)
    assert "power.idle_w 115" in assumed(found)
    assert "pim.passive_w_per_mm2 0.06" in assumed(found)
    stated = summary_of(f"cluster.device={{{own}, power: {{idle_w: 40}}, {pim % ', passive_w: 3'}}}")
    assert stated["energy"]["passive_joules"] == pytest.approx(43 * stated["end_s"])


def test_an_own_chip_has_that_of_the_preset_and_says_so() -> None:
    usual = load_device("aimc-realistic").spec
    document = usual.model_dump(mode="json", exclude_none=True, exclude={"power"}) | {"name": "mine"}
    del document["dram"]["idle_w"]
    mine = load_device(document)
    assert mine.key_figures["passive_w"] == passive_w("aimc-realistic")
    assert any("power.tile_mw 7" in said and "dram.idle_w 4" in said for said in mine.spec.assumptions)


def test_a_device_without_it_has_energy_of_work_only_and_says_so() -> None:
    found = summary_of("cluster.device={preset: h100, power: null}")
    assert (found["energy"]["passive_joules"], found["energy"]["passive_power"]) == (None, "not_known")
    assert found["energy"]["joules"] == found["energy"]["active_joules"]
    assert "passive power of h100 (changed) is not known: the energy is without it" in found["warnings"]


def test_power_of_work_goes_in_pairs() -> None:
    with pytest.raises(InputError, match="decode_w and prefill_w go together"):
        summary_of(f"cluster.device={{{OWN}, power: {{idle_w: 40, decode_w: 90}}}}")
    with pytest.raises(InputError, match="idle_w must be at most decode_w and prefill_w"):
        summary_of(f"cluster.device={{{OWN}, power: {{idle_w: 40, decode_w: 90, prefill_w: 30}}}}")


def test_a_group_of_which_it_is_not_known_leaves_its_whole_replica_without() -> None:
    placement = "cluster.placement={experts: {device: {preset: h100, power: null}}, micro_batches: 1}"
    found = summary_of("model=mixtral-8x7b", "cluster.device=duplex", "cluster.devices_per_node=2", placement)
    assert found["energy"]["passive_power"] == "not_known"
    said = "passive power of h100 (changed) is not known: the energy is without it, and without that of duplex in the "
    assert f"{said}same replicas" in found["warnings"]
    groups = found["groups"]
    assert groups["experts"]["passive_joules"] is None
    assert groups["attention"]["passive_joules"] > 0


def test_passive_power_of_both_groups_counts_for_as_long_as_the_run_takes() -> None:
    placement = "cluster.placement={experts: {device: h100, devices_per_node: 2}, micro_batches: 1}"
    found = summary_of("model=mixtral-8x7b", "cluster.device=h100", "cluster.devices_per_node=4", placement)
    of_one = passive_w("h100") * found["end_s"]
    assert found["energy"]["passive_joules"] == pytest.approx(6 * of_one, rel=1e-6)
    assert found["groups"]["experts"]["passive_joules"] == pytest.approx(2 * of_one, rel=1e-6)
    assert found["tdp_w"] == 6 * 700
