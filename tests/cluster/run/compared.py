"""Runs to compare, and what is told of them."""

import io

from pimserve.cluster.cli.comparison_report import comparison_report
from pimserve.cluster.cli.terminal import console, write
from pimserve.device_models.registry import load_device

SCENARIO = {
    "name": "example",
    "model": {"name": "mixtral-8x7b", "hidden": 4096, "sources": ["a"]},
    "cluster": {"device": {"name": "duplex", "memory_gb": 80}, "replicas": 1},
    "workload": {"preset": "azure-conv-2023"},
    "slo": {"ttft_s": 2.0},
    "run": {"seed": 0},
    "output": {"steps": True},
}


def changed(section, **values):
    return {**SCENARIO, section: {**SCENARIO[section], **values}}


def quantity(comparison, path):
    (found,) = [each for each in comparison.quantities if each.path == path]
    return found


def report(comparison):
    file = io.StringIO()
    write(comparison_report(comparison, console(file)), file)
    return file.getvalue()


def on(device):
    """The scenario on a device, written out as runs write it."""
    return changed("cluster", device=load_device(device).spec.model_dump(mode="json", exclude_none=True))
