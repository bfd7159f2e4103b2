"""The measured setting against the reference data, which is not part of the repository."""

import pytest

from pimserve.cluster.validation.gpu_errors import place
from pimserve.cluster.validation.gpu_rows import MEASURED
from pimserve.cluster.validation.validate_gpu import validate_gpu
from tests.pages import current, pages_script
from tests.validation.gpu_example import REFERENCE, needs_reference

pytestmark = [needs_reference, pytest.mark.timeout(900)]  # all rows take minutes on a busy machine


@pytest.fixture(scope="module")
def operators():
    return validate_gpu(measured=REFERENCE / MEASURED)


@pytest.fixture(scope="module")
def whole():
    """All rows of the reference data, served ones too."""
    return validate_gpu()


def missed(report):
    return [gate for gate in report.gates if not gate.passed]


def test_every_timed_operator_is_predicted(operators):
    assert operators.uncovered == ()
    assert len(operators.operators) >= 400


def test_operators_hold_their_limits(operators):
    assert len(operators.gates) == 12
    assert missed(operators) == []


def test_no_operator_is_faster_than_the_hardware(operators):
    below = [place(each.row.where) for each in operators.operators if each.predicted_us < each.bound_us]
    assert below == []


@pytest.mark.deep
def test_served_llama_holds_its_limits(whole):
    gates = [gate for gate in whole.gates if gate.name.startswith("llama-3.1-70b on")]
    assert len(gates) == 4 * 5  # GPUs and backends
    assert [gate for gate in gates if not gate.passed] == []


@pytest.mark.deep
def test_served_rows_are_predicted_or_say_why(whole):
    counted = [each for each in whole.anchors if each.counted]
    assert len(whole.served) >= 260
    assert len(counted) >= 100
    assert all(each.reason for each in whole.uncovered)
    # Of backends that were measured, none is left out but what repeats another.
    reasons = {each.reason.split(" ")[0] for each in whole.uncovered if "served.rows" in each.where}
    assert reasons == {"backend", "repeats"}


@pytest.mark.deep
def test_the_page_is_current(whole, monkeypatch):
    pytest.importorskip("matplotlib", reason="the page's pictures need the docs extra")
    script = pages_script()
    monkeypatch.setattr(script.gpu_page, "validate_gpu", lambda: whole)
    assert current(script, "gpu_validation.md", monkeypatch), "run python docs/pages.py gpu_validation.md"
