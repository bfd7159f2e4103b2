"""Which limits hold for which request."""

import numpy as np
import pytest

from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.request_classes import ClassSpec
from pimserve.loadgen.slo import SloSpec

IDS = np.array([2, 0, 1, 2], np.int8)


def of(slo: SloSpec, *slos: SloSpec | None) -> Objectives:
    return Objectives.of(slo, [ClassSpec(name=f"c{number}", slo=each) for number, each in enumerate(slos)])


def test_without_classes_limits_are_those_of_the_run():
    objectives = Objectives.of(SloSpec(ttft_s=2, e2e_s=9), None)
    assert objectives == Objectives(SloSpec(ttft_s=2, e2e_s=9))
    assert objectives.names() == ("ttft_s", "e2e_s")
    assert objectives.limits_s("e2e_s", IDS) == 9
    assert objectives.all_limits_s("e2e_s") == {9}
    assert Objectives().names() == ()


def test_a_class_has_its_own_limits_or_those_of_the_run():
    objectives = of(SloSpec(ttft_s=2), None, SloSpec(tpot_s=0.1, ttft_s=3))
    assert objectives.names() == ("ttft_s", "tpot_s")
    assert objectives.limits_s("ttft_s", IDS).tolist() == [3, 2, 2, 3]
    assert objectives.limits_s("tpot_s", IDS).tolist() == [0.1, np.inf, np.inf, 0.1]
    assert objectives.all_limits_s("ttft_s") == {2, 3}
    assert objectives.all_limits_s("e2e_s") == set()


def test_longest_gaps_are_asked_for_where_any_class_limits_them():
    assert of(SloSpec(), None, SloSpec(itl_max_s=1)).of_longest_gaps
    assert not of(SloSpec(ttft_s=2), SloSpec(e2e_s=1)).of_longest_gaps


@pytest.mark.parametrize("slos", [(None, None), (SloSpec(ttft_s=2), SloSpec(ttft_s=2, e2e_s=1))])
def test_one_limit_for_all_is_a_number(slos):
    assert of(SloSpec(ttft_s=2), *slos).limits_s("ttft_s", IDS) == 2
