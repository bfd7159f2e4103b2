"""Small runs for tests of reports."""

import json

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.documents import run

SMALL = ("workload.num_requests=120", "slo.ttft_s=0.04")


def make_run(folder, *overrides):
    """Run the default scenario, small and with changes, into a folder."""
    run(prepare(load_scenario(None, [*SMALL, *overrides])), folder)
    return folder


def changed_summary(folder, **changes):
    """Change top-level keys of a run's summary."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(json.dumps(summary | changes))
    return folder


AIMC = (
    "cluster.device=aimc-realistic",
    "cluster.devices_per_node=6",
    "cluster.experts=ep",
    "name=on-aimc",
)
MIXED = (
    "cluster.devices_per_node=2",
    "cluster.placement={experts: {device: aimc-realistic}, micro_batches: auto, link: {gb_per_s: 100}}",
    "name=on-both",
)
MEASURED = ("costs.setting=measured", "costs.backend=vllm", "model=llama-3.1-70b", "cluster.device=h100", "name=on-gpu")
