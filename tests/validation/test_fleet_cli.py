"""`pimserve validate fleets` as a user runs it, on a small fleet of one's own."""

import json

import pytest

from tests.command import pimserve
from tests.validation.fleet_example import CASE, written

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fleet", "big"), "fleet 'big': is unknown (known: "),
        (("--fleet", "small", "--stage", "3"), "--stage: '3' is not RATE:SECONDS"),
        (("--fleet", "small", "--stage", "0:4"), "must be above 0"),
        (("--fleet", "replayed", "--stage", "12:5"), "--stage: this fleet replays a trace and has no stages"),
        (("--router", "random"), "need --fleet"),
    ],
)
def test_wrong_options_are_told(tmp_path, arguments, message):
    written(tmp_path)
    done = validate(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
