"""A small fleet in the form of the package's own, which takes no time to run."""

import json
from pathlib import Path
from typing import Any

FLEET: dict[str, Any] = {
    "title": "a small one",
    "sources": ["made up"],
    "warmup": [[4, 5]],
    "ladder": [[2, 20], [8, 10]],
    "scenario": {
        "model": "llama-3.1-8b",
        "costs": {"setting": "measured"},
        "cluster": {"device": "h100", "devices_per_node": 1, "replicas": 2},
        "scheduler": {"enable_prefix_caching": True},
        "workload": {
            "arrival": {"process": "poisson"},
            "prefix": {
                "groups": 4,
                "prompts_per_group": 3,
                "shared_tokens": 512,
                "own_tokens": 64,
                "order": "shuffled",
            },
            "lengths": {"output": {"kind": "fixed", "tokens": 20}},
        },
    },
}
REPLAYED = {
    "title": "one of a trace",
    "sources": ["made up"],
    "scenario": {"workload": {"trace": {"path": "none.csv"}}},
}
TALKING = {
    "title": "one of sessions",
    "sources": ["made up"],
    "scenario": {"workload": {"sessions": {"turns": 3, "num_sessions": 4, "max_active": 2}}},
}
CASE = {
    "id": "small-2",
    "quantity": "output_tokens_per_s",
    "case": {"fleet": "small", "rate": 2},
    "published": 40,
    "tolerance": 0.5,
    "tolerance_kind": "rel",
    "provenance": "made up",
}


def written(folder: Path, *cases: dict[str, Any], **changes: Any) -> Path:
    """A file of the small fleet, with these changes, and these cases."""
    path = folder / "fleets.json"
    path.write_text(
        json.dumps(
            {
                "fleets": {"small": {**FLEET, **changes}, "replayed": REPLAYED, "talking": TALKING},
                "cases": cases or [CASE],
            }
        )
    )
    return path
