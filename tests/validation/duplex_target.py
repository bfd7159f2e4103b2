"""A target like those of the Duplex paper."""

from typing import Any

from pimserve.cluster.validation.targets import Target


def target(**changes: Any) -> Target:
    values: dict[str, Any] = {
        "id": "T1",
        "case": {"model": "Mixtral", "batch": 32, "Lin": 256, "Lout": 256, "system": "Duplex", "baseline": "GPU"},
        "quantity": "throughput ratio",
        "published": 2.0,
        "tolerance": 0.1,
        "tolerance_kind": "rel",
        "provenance": "",
        "where": "targets.json: target T1",
    }
    return Target(**{**values, **changes})
