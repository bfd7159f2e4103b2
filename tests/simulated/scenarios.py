"""What the seeds run: small scenarios, prepared once, and what an undisturbed run of each gives."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pimserve.cluster.run.read_summary import read_summary
from pimserve.cluster.run.run import run
from pimserve.cluster.run.summary_schema import Summary
from pimserve.cluster.run.verify_run import verify_results
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare

_MOE = {
    "name": "tiny-moe",
    "layers": 2,
    "hidden": 8192,
    "vocab": 32000,
    "attention": {"kind": "gqa", "heads": 64, "kv_heads": 8, "head_dim": 128},
    "moe": {"experts": 8, "top_k": 2, "intermediate": 49152},
    "max_model_len_tokens": 1024,
}
_DENSE = {key: value for key, value in _MOE.items() if key != "moe"} | {"name": "tiny", "ffn": {"intermediate": 28672}}
_WORKLOAD = {
    "num_requests": 10,
    "arrival": {"process": "gamma", "rate_per_s": 4, "cv": 3},
    "lengths": {
        "input": {"kind": "uniform", "low": 10, "high": 300},
        "output": {"kind": "uniform", "low": 2, "high": 9},
    },
}
_DOCUMENTS: dict[str, dict[str, Any]] = {
    "moe": {
        "cluster": {"device": "duplex", "replicas": 2, "devices_per_node": 2, "experts": "ep"},
        "routing": {"mode": "exact"},
    },
    "least loaded": {
        "model": _DENSE,
        "cluster": {"device": "duplex", "replicas": 2, "devices_per_node": 2},
        "scheduler": {"router": "least_outstanding", "report_interval_s": 0.5},
    },
    "pools": {
        "cluster": {
            "device": "duplex",
            "devices_per_node": 2,
            "pools": {"prefill": {"device": "duplex", "replicas": 1}, "decode": {"device": "duplex", "replicas": 1}},
        },
        "routing": {"mode": "exact"},
        "scheduler": {"report_interval_s": 0.7},
    },
    "closed": {
        "model": _DENSE,
        "cluster": {"device": "duplex", "replicas": 2, "devices_per_node": 2},
        "workload": {**_WORKLOAD, "mode": "closed", "concurrency": 4, "arrival": None},
    },
    "prefixes": {
        "model": _DENSE,
        "cluster": {
            "device": "duplex",
            "devices_per_node": 2,
            "pools": {"prefill": {"device": "duplex", "replicas": 2}, "decode": {"device": "duplex", "replicas": 1}},
        },
        "scheduler": {
            "report_interval_s": 0.7,
            "enable_prefix_caching": True,
            "kv_blocks": 80,
            "router": {"name": "dynamo", "prefixes": "kv_events"},
            "kv_tiers": [{"name": "host", "capacity_gb": 0.02, "gb_per_s": 1}, {"name": "disk", "write": "back"}],
        },
        "workload": {**_WORKLOAD, "prefix": {"groups": 2, "shared_tokens": 200}},
    },
    "mixed": {
        "cluster": {
            "device": "duplex",
            "replicas": 2,
            "devices_per_node": 1,
            "placement": {"experts": {"device": "duplex", "devices_per_node": 2}, "micro_batches": 2},
        },
        "routing": {"mode": "exact"},
    },
    "hot": {
        "cluster": {
            "device": "duplex",
            "replicas": 2,
            "devices_per_node": 1,
            "placement": {
                "hot_experts": {"device": "b200", "devices_per_node": 1, "count": 1},
                "experts": {"device": "duplex", "devices_per_node": 2, "experts": "tp"},
                "micro_batches": 2,
            },
        },
        "routing": {"popularity": "zipf", "zipf_exponent": 1.0},
    },
    "faults": {
        "cluster": {"device": "duplex", "replicas": 2, "devices_per_node": 2},
        "faults": {
            "detection_s": 0.2,
            "events": [
                {"at_s": 0.5, "replica": 0, "kind": "fail", "for_s": 0.8},
                {"at_s": 1.1, "replica": 1, "kind": "slow", "factor": 1.5, "for_s": 0.7},
            ],
        },
    },
}


@dataclass(frozen=True)
class Case:
    """A scenario, and what its run gives.

    Attributes:
        files: of the results folder, by name, that are the same in every run.
    """

    name: str
    document: dict[str, Any]
    prepared: Prepared
    expected: dict[str, Any]
    files: dict[str, bytes]


def figures(summary: Summary) -> dict[str, Any]:
    """What every run has in common."""
    return {key: value for key, value in summary.document().items() if key not in {"results", "simulator"}}


def same_files(folder: Path) -> dict[str, bytes]:
    """Files of a results folder that are the same in every run."""
    return {name: (folder / name).read_bytes() for name in ("requests.npy", "scenario.yaml", "steps.npy")}


def differences(case: Case, results: Path) -> list[str]:
    """What a results folder has other than an undisturbed run."""
    there = figures(read_summary(results))
    found = [f"{wrong.file}: {wrong.message}" for wrong in verify_results(results).findings]
    found += [f"other figures: {key}" for key, value in case.expected.items() if there.get(key) != value]
    files = same_files(results)
    return found + [f"other bits in {name}" for name, content in case.files.items() if files[name] != content]


def cases() -> list[Case]:
    """All of them, run undisturbed in this process."""
    made = []
    scratch = Path(tempfile.mkdtemp())
    for name, document in _DOCUMENTS.items():
        whole = {"model": _MOE, "workload": _WORKLOAD, **document}
        whole["workload"] = {key: value for key, value in whole["workload"].items() if value is not None}
        prepared = prepare(Scenario.model_validate(whole))
        summary = run(prepared, scratch / name)
        made.append(Case(name, whole, prepared, figures(summary), same_files(scratch / name)))
    shutil.rmtree(scratch)
    return made
