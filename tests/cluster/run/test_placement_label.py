"""Placements that not all runs have are told in one line."""

import pytest

from pimserve.cluster.run.placement_label import placement_label, with_labels


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
