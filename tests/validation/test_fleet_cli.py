"""`pimserve validate fleets` as a user runs it, on a small fleet of one's own."""

import copy
import json

import pytest

from tests.command import pimserve
from tests.validation.fleet_example import CASE, FLEET, written

pytestmark = pytest.mark.e2e


def validate(folder, *arguments):
    return pimserve(folder, "validate", "fleets", "--cases", folder / "fleets.json", *arguments)


def test_a_figure_that_is_met_and_one_that_is_missed(tmp_path):
    written(tmp_path)
    met = validate(tmp_path)
    assert met.returncode == 0, met.stdout
    assert met.stdout.splitlines()[-1] == "1 of 1 figures met (1 by engine)"
    assert max(map(len, met.stdout.splitlines())) <= 80
    written(tmp_path, {**CASE, "published": 4000})
    missed = validate(tmp_path)
    assert missed.returncode == 1
    assert "no reason is known" in missed.stdout
    written(tmp_path, {**CASE, "published": 4000, "cause": "it is another fleet"})
    known = validate(tmp_path)
    assert known.returncode == 0
    assert "it is another fleet" in known.stdout
    assert json.loads(validate(tmp_path, "--json").stdout)[0]["passed"] is False


def test_stages_of_ones_own(tmp_path):
    written(tmp_path)
    shown = validate(tmp_path, "--fleet", "small", "--stage", "3:10", "--stage", "6:5")
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["rate/s", "3.00", "6.00"]
    rows = json.loads(validate(tmp_path, "--fleet", "small", "--router", "random", "--json").stdout)
    assert [row["rate_per_s"] for row in rows] == [2, 8]
    assert all(row["ttft_p50_s"] <= row["ttft_p90_s"] <= row["e2e_p50_s"] for row in rows)


def test_figures_of_unlike_stages_fit_the_width(tmp_path):
    written(tmp_path)
    shown = validate(tmp_path, "--fleet", "small", "--stage", "0.04:90", "--stage", "300:20").stdout
    assert "\u2026" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_stages_take_the_place_of_a_rate_and_number_of_ones_own(tmp_path):
    scenario = copy.deepcopy(FLEET["scenario"])
    scenario["workload"]["arrival"] |= {"rate_per_s": 5, "normalize_duration": True}
    scenario["workload"]["num_requests"] = 30
    written(tmp_path, scenario=scenario, warmup=[], ladder=[])
    assert validate(tmp_path, "--fleet", "small").stdout.splitlines()[1].split()[:2] == ["-", "30"]
    rows = json.loads(validate(tmp_path, "--fleet", "small", "--stage", "40:2", "--json").stdout)
    assert [row["rate_per_s"] for row in rows] == [40]
    assert rows[0]["requests"] > 30


def test_stages_are_of_arrivals_that_are_null(tmp_path):
    written(tmp_path)
    null = ("--set", "workload.arrival=null")
    rows = json.loads(validate(tmp_path, "--fleet", "small", "--stage", "8:5", "--json", *null).stdout)
    assert rows[0]["requests"] == pytest.approx(40, abs=20)


def test_a_fleet_whose_scenario_has_no_workload_takes_stages(tmp_path):
    written(tmp_path, scenario={}, warmup=[], ladder=[])
    rows = json.loads(validate(tmp_path, "--fleet", "small", "--stage", "8:5", "--json").stdout)
    assert rows[0]["requests"] == pytest.approx(40, abs=20)


def test_a_router_with_parameters_and_other_keys(tmp_path):
    written(tmp_path)
    given = ("--fleet", "small", "--stage", "9:5", "--json")
    own, least = (
        json.loads(validate(tmp_path, *given, *more).stdout)
        for more in ((), ("--router", "{name: weighted, prefix: 0}", "--set", "cluster.replicas=1"))
    )
    assert own[0]["requests"] == least[0]["requests"]
    assert least[0]["ttft_mean_s"] != own[0]["ttft_mean_s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fleet", "big"), "fleet 'big': is unknown (known: "),
        (("--fleet", "small", "--stage", "3"), "--stage: '3' is not RATE:SECONDS"),
        (("--fleet", "small", "--stage", "0:4"), "must be above 0"),
        (("--fleet", "replayed", "--stage", "12:5"), "fleet 'replayed': replays a trace: it can have no stages"),
        (("--fleet", "talking", "--stage", "12:5"), "fleet 'talking': has sessions, most of whose turns follow"),
        (("--fleet", "small", "--set", "workload.sessions={turns: 3}"), "fleet 'small': has sessions, most of whose"),
        (("--fleet", "small", "--router", "{name: weighted, hits: 2}"), "scheduler.router.hits: unknown key"),
        (("--fleet", "small", "--set", "cluster.device.x.y=1"), "unknown key"),
        (
            ("--fleet", "small", "--set", "scheduler.max_model_len=9"),
            "no request of the stage of 4 requests per second",
        ),
        (("--fleet", "small", "--set", "workload.arrival.rate_per_s=5"), "workload.arrival: process 'poisson' needs"),
        (("--fleet", "small", "--set", "workload=5"), "fleet 'small'.workload: "),
        (("--router", "random"), "need --fleet"),
        (("--set", "cluster.replicas=3"), "need --fleet"),
    ],
)
def test_wrong_options_are_told(tmp_path, arguments, message):
    written(tmp_path)
    done = validate(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
