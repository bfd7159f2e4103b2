"""Speeds as people write them, and runs that wait for the wall clock."""

import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.base.speed import FASTEST, SLOWEST, parse_speed
from pimserve.cluster.run.pace import PacedControl, Pacer
from pimserve.errors import InputError

S = 10**15  # fs


class Wall:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("text", "speed"), [("60x", 60), ("60", 60), ("0.5x", 0.5), (" 2X ", 2), (".25", 0.25), ("1e3x", 1000)]
)
def test_speeds(text, speed):
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "x", "0", "0x", "-1x", "nan", "inf", "60xx", "1e9", "1e-9", "6 0", "６０"])
def test_what_is_no_speed(text):
    with pytest.raises(InputError, match=r"^--speed: must be a factor of 0.001 to 1e\+06, such as 60x"):
        parse_speed(text)


@given(st.floats(SLOWEST, FASTEST))
def test_speeds_survive_being_written(speed):
    assert parse_speed(f"{speed!r}x") == speed


def test_simulated_time_passes_at_speed_times_the_wall_clock():
    wall = Wall()
    pacer = Pacer(60, wall)
    assert pacer.window_fs == 6 * S
    assert pacer.delay_s(10 * S) == 0  # counts from its first look
    assert pacer.delay_s(70 * S) == pytest.approx(1.0)
    wall.now += 0.9
    assert pacer.delay_s(70 * S) == pytest.approx(0.1)
    wall.now += 0.5
    assert pacer.delay_s(70 * S) == pytest.approx(-0.4)
    assert pacer.delay_s(130 * S) == pytest.approx(0.6)  # a short delay is caught up


def test_a_run_that_fell_behind_does_not_race_to_catch_up():
    wall = Wall()
    pacer = Pacer(1, wall)
    pacer.delay_s(0)
    wall.now += 50
    assert pacer.delay_s(S) == pytest.approx(-49)
    assert pacer.delay_s(2 * S) == pytest.approx(1.0)


def test_a_held_run_goes_on_at_its_pace():
    wall = Wall()
    pacer = Pacer(1, wall)
    pacer.delay_s(0)
    wall.now += 0.5
    pacer.restart()
    assert pacer.delay_s(S) == 0
    assert pacer.delay_s(2 * S) == pytest.approx(1.0)


def test_paced_control_waits():
    control = PacedControl(10)
    control.barrier(SimpleNamespace(now_fs=0))
    end = control.next_barrier_fs(0)
    assert end == S
    began = time.monotonic()
    control.barrier(SimpleNamespace(now_fs=end))
    assert 0.05 < time.monotonic() - began < 1


def test_a_run_that_cannot_keep_its_pace_takes_longer_windows() -> None:
    """Each takes 5 s whatever its length, as with shards on a slow network."""
    now_s = 0.0
    pacer = Pacer(0.3, lambda: now_s)
    now_fs = windows = 0
    while now_fs < 10 * S and windows < 500:
        now_fs += pacer.window_fs
        now_s += 5.0
        now_s += max(0.0, pacer.delay_s(now_fs))
        windows += 1
    assert windows < 40  # 334 of a tenth of a second each
    pacer.delay_s(now_fs + 10**3 * S)
    assert pacer.window_fs == round(0.03 * S)  # ahead: as long as ever
