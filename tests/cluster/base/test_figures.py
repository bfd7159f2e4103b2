"""Figures as people read them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.base.figures import count, figure, half_width, named, ratio, scale, scaled, share, whole


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.31101, "0.311"),
        (4.7768, "4.78"),
        (9.996, "10.0"),
        (99.96, "100"),
        (251.44, "251"),
        (1005.77, "1,006"),
        (1234567.8, "1,234,568"),
        (0.0012, "0.00120"),
        (0.00012, "1.20e-04"),
        (-4.7768, "-4.78"),
    ],
)
def test_figure_shows_three_digits(value, text):
    assert figure(value) == text


@pytest.mark.parametrize(
    ("write", "mean", "width", "text"),
    [
        (figure, 23.4, 1.52e-10, "0"),
        (figure, 23.4, 0.049, "0"),
        (figure, 23.4, 0.051, "0.0510"),
        (figure, -23.4, 1e-9, "0"),
        (figure, 12_345.6, 0.4, "0"),
        (figure, 12_345.6, 6, "6.00"),
        (figure, 1.2e-4, 1e-9, "0"),
        (figure, 1.2e-4, 1e-6, "1.00e-06"),
        (figure, 0, 1.52e-10, "1.52e-10"),
        (share, 0.5, 1e-5, "0 %"),
        (share, 0.5, 0.01, "1.0 %"),
        (share, 0.0004, 0.0002, "0 %"),
        (share, 0.9996, 0.02, "2.0 %"),
        (share, 1, 0.02, "2.0 %"),
        (whole, 500, 0.2, "0"),
        (whole, 500, 3, "3"),
    ],
)
def test_half_widths_below_the_last_digit_of_the_mean_are_nothing(write, mean, width, text):
    assert half_width(write, mean, width) == text


@given(st.floats(1e-300, 1e15))
def test_figure_is_within_half_a_unit_of_the_third_digit(value):
    assert float(figure(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.99966, ">99.9 %"),
        (0.9991, ">99.9 %"),
        (0.999, "99.9 %"),
        (0.0004, "<0.1 %"),
        (0.0009, "<0.1 %"),
        (0.001, "0.1 %"),
        (0.5, "50.0 %"),
        (0.0138, "1.4 %"),
    ],
)
def test_share_reads_0_or_100_only_when_it_is(value, text):
    assert share(value) == text


@given(st.floats(0, 1))
def test_share_never_claims_all_or_nothing(value):
    assert (share(value) == "100 %") == (value == 1)
    assert (share(value) == "0 %") == (value == 0)
    assert not re.match(r"100\.0|0\.0", share(value))


@given(st.floats(0, 1))
def test_share_is_within_half_a_unit_of_its_last_digit(value):
    text = share(value).removesuffix(" %")
    if text[0] in "<>":
        assert value < 0.001 if text == "<0.1" else value > 0.999
    else:
        assert float(text) / 100 == pytest.approx(value, abs=0.000501)


@pytest.mark.parametrize(
    ("values", "unit"),
    [([0.0183, 0.0558], "ms"), ([0.744, 2.18], "s"), ([3e-6], "us"), ([0.0, None], "s"), ([], "s"), ([1e-30], "ps")],
)
def test_scale_follows_the_largest(values, unit):
    assert scale(values, "s")[1] == unit


@given(st.floats(1e-12, 1e6))
def test_scaled_value_is_one_or_more(value):
    size, _ = scale([value], "s")
    assert value / size >= 1
    assert value / size < 1000 * (1 + 1e-9) or math.isclose(size, 1)


def test_what_does_not_apply_is_a_dash():
    assert [count(None), ratio(None), scaled(None, "J")] == ["-", "-", "-"]


@pytest.mark.parametrize(("value", "text"), [(1.0, "1.00x"), (0.5, "0.50x"), (12.91, "12.9x"), (0.0123, "0.0123x")])
def test_ratio(value, text):
    assert ratio(value) == text


def test_names_of_units_that_nobody_listed():
    assert named("logic_pim") == "Logic-PIM"
    assert named("my_unit") == "my unit"
