"""The coefficients of the measured setting: derived again from the reference data, and within what hardware can do."""

import sys

import pytest

from pimserve.device_models.catalogue import kernel_names, load_kernel_document
from pimserve.device_models.kernels import load_kernels
from pimserve.device_models.registry import load_device
from tests.validation.gpu_example import REFERENCE, ROOT, needs_reference

ALGORITHMS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
# us, us per 1,024 of k, tokens, or passes over data: no kernel is started in less than 1 us or more than 100.
RANGES = {
    "gemm": {"launch_us": (1, 20), "depth_us": (0, 2), "reread": (0, 0.3), "activation_passes": (0, 12)},
    "decode_attention": {"launch_us": (3, 30), "sequence_tokens": (0, 400)},
    "prefill_attention": {"launch_us": (3, 30), "ramp_tokens": (0, 3000)},
    "moe": {"launch_us": (1, 100), "expert_us": (0, 1), "padding_tokens": (0, 128), "row_passes": (0, 12)},
}
STEP_US = {
    "layer_us": (0.5, 10),
    "host_us": (50, 2000),
    "host_request_us": (0, 100),
    "host_prompt_us": (0, 10_000),
    "frontend_us": (0, 100_000),
}


@pytest.fixture(params=kernel_names())
def name(request):
    return request.param


@pytest.fixture
def kernels(name):
    return load_kernels(*name.split("-"))


@pytest.fixture
def calibrate(monkeypatch):
    """The calibration's modules, on the reference data."""
    pytest.importorskip("scipy", reason="fits need the docs extra")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.setenv("PIMSERVE_REFERENCE", str(REFERENCE))
    from calibrate import collectives, report, sets  # noqa: PLC0415 not installed

    yield collectives, report, sets
    for module in [each for each in sys.modules if each.partition(".")[0] == "calibrate"]:
        del sys.modules[module]


def test_sets_say_where_every_section_is_from(name, kernels):
    assert f"{kernels.gpu}-{kernels.backend}" == name
    assert kernels.version
    said = " ".join(source.partition(":")[0] for source in kernels.sources)
    for section in ("gemm", "decode_attention", "prefill_attention", "moe", "collectives", "step"):
        assert section in said
    for dtype in kernels.gemm:
        assert any(source.startswith("gemm") and dtype in source.partition(":")[0] for source in kernels.sources)


def test_kernels_are_within_what_hardware_can_do(kernels):
    for section, ranges in RANGES.items():
        for kernel in getattr(kernels, section).values():
            # Nothing reads faster than nominal, computes faster than the peak, or wastes nearly all of both.
            shares = [getattr(kernel, key) for key in ("compute", "memory") if hasattr(kernel, key)]
            assert all(0.15 <= share <= 0.97 for share in shares)
            for key, (low, high) in ranges.items():
                assert low <= getattr(kernel, key) <= high, (section, key)
            captured = getattr(kernel, "captured_us", None)
            assert captured is None or captured <= kernel.launch_us + getattr(kernel, "expert_us", 0.0) * 256
    for key, (low, high) in STEP_US.items():
        assert low <= getattr(kernels.step, key) <= high, key


def test_collectives_are_no_faster_than_the_links(kernels):
    link = load_device(kernels.gpu).spec.link_gb_per_s
    for name in ALGORITHMS:
        groups = getattr(kernels.collectives, name)
        assert groups
        for group, algorithms in groups.items():
            # A switch that sums lets every GPU send its data once, and receive the sum once.
            most = link * (2 if name == "all_reduce" else 1) * (group - 1) / group
            for each in algorithms:
                assert each.bus_gb_per_s <= most, (name, group, each.name)
                assert 1 <= each.latency_us <= 200
            # Later algorithms start later and run faster, or nobody would have them.
            for library in ("NCCL", ""):
                mine = [each for each in algorithms if each.name.startswith("NCCL") == (library == "NCCL")]
                assert [each.latency_us for each in mine] == sorted(each.latency_us for each in mine)
                assert [each.bus_gb_per_s for each in mine] == sorted(each.bus_gb_per_s for each in mine)


@needs_reference
@pytest.mark.slow
@pytest.mark.parametrize("system", [("h100", "vllm"), ("b200", "trtllm")])
def test_coefficients_are_derived_again(calibrate, system):
    _, _, sets = calibrate
    document = load_kernel_document("-".join(system))
    for section in ("gemm", "decode_attention", "prefill_attention", "moe"):
        found = sets.fit_operators(*system, section)
        assert found.keys() == document[section].keys()
        for dtype, kernel in found.items():
            # The catalogue rounds to hundredths: what lies between two of them may fall to either on another processor.
            assert kernel == pytest.approx(document[section][dtype], rel=0.02, abs=0.0101), (section, dtype)


@needs_reference
@pytest.mark.deep
def test_algorithms_of_collectives_are_derived_again(calibrate):
    collectives, _, _ = calibrate
    common = collectives.fit_common()
    for name in kernel_names():
        document = load_kernel_document(name)["collectives"]
        found = collectives.collectives(*name.split("-"), common)
        assert found.keys() == document.keys()
        for key, groups in found.items():
            for group, algorithms in groups.items():
                expected = {each.pop("name"): each for each in document[key][group]}
                ours = {each.pop("name"): each for each in algorithms}
                assert list(ours) == list(expected)
                for algorithm, values in ours.items():
                    assert values == pytest.approx(expected[algorithm], rel=0.02), (name, key, group)


@needs_reference
def test_fits_predict_as_validation_does(calibrate):
    """The errors that fits minimise are those of `pimserve validate gpu`."""
    from pimserve.cluster.validation.gpu_operators import operator_class, predicted_us  # noqa: PLC0415 slow to import

    collectives, report, _ = calibrate
    expected = {}
    for row in report.single_calls():
        expected.setdefault(operator_class(row), []).append(predicted_us(row) / row.time_us - 1)
    found = report.operator_errors({name: load_kernels(*name.split("-")) for name in kernel_names()})
    assert len(collectives.all_reduce_rows()) == len(found["all_reduce"]) + len(found["all_reduce nccl"])
    assert found.keys() == expected.keys()
    for name, errors in found.items():
        assert sorted(errors) == pytest.approx(sorted(expected[name]), abs=1e-9)
