"""Checkpoints of another layout are of another version: what one calls its figures changes with the version alone."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.run.checkpoint import CheckpointFolder
from pimserve.cluster.run.checkpoint_files import VERSION, read_state
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.scheduler.control import RunView
from tests.cluster.documents import run

OF_VERSION = 36, "a1b48613a158dc61"  # where names change: raise VERSION, then note it and their digest here
_CLASSES = "{classes: [{name: a}, {name: b}], num_requests: 40, arrival: {rate_per_s: 20}}"
SCENARIOS = {
    "pools": [
        "cluster={device: duplex, devices_per_node: 1, pools: {prefill: {device: h100, devices_per_node: 2}, "
        "decode: {placement: {experts: {device: h100, devices_per_node: 2}, micro_batches: 2}}}}",
        "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.1, sigma: 0.5}}",
        "workload={mode: closed, concurrency: 5, num_requests: 40}",
        "slo.itl_max_s=0.05",
        "scheduler.enable_prefix_caching=true",
        "faults.events=[{at_s: 0.3, replica: 1, kind: slow, factor: 1.5, for_s: 0.2}]",
    ],
    "tiers": [
        "model=gpt-oss-20b",
        "cluster={device: h100, devices_per_node: 1, replicas: 2}",
        f"workload={_CLASSES}",
        "workload.prefix={groups: 4, shared_tokens: 500}",
        "scheduler={policy: vtc, router: {name: dynamo, prefixes: kv_events}, report_interval_s: 0.05, "
        "enable_prefix_caching: true, kv_blocks: 400, kv_tiers: [{name: host, capacity_gb: 1, gb_per_s: 50}, "
        "{name: store, shared: true, gb_per_s: 20}]}",
    ],
    "drafts": [
        "model=qwen3-30b-a3b",
        "cluster={device: h100, devices_per_node: 2, tensor_parallel: 1, experts: ep}",
        f"workload={_CLASSES}",
        "scheduler.speculative={method: ngram, num_speculative_tokens: 1, acceptance: 0.7}",
        "scheduler.enable_prefix_caching=true",
    ],
}


class Killed(BaseException):
    """Stands for the end of the process."""


class Dies:
    """After half a second of simulated time, in ten windows."""

    def next_barrier_fs(self, now_fs: int) -> int:
        return now_fs + 50 * 10**12

    def ended(self, view: RunView) -> None:
        pass

    def barrier(self, view: RunView) -> None:
        if view.window == 10:
            raise Killed


def keys(value: Any, at: str = "") -> Iterator[str]:
    """Ways to all that has a name; entries of lists, and what is kept by number, count as alike."""
    if isinstance(value, dict):
        for key, inside in value.items():
            here = f"{at}.{'#' if key.isdigit() else key}"
            yield here
            yield from keys(inside, here)
    elif isinstance(value, list):
        for inside in value:
            yield from keys(inside, at)


@pytest.mark.medium
def test_what_checkpoints_hold_changes_with_their_version_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointFolder, "due", lambda _: True)
    found: set[str] = set()
    for what, scenario in SCENARIOS.items():
        kept = tmp_path / what
        with pytest.raises(Killed):
            run(prepare(load_scenario(None, scenario)), tmp_path / "out", control=Dies(), checkpoints=kept)
        found.update(keys(read_state(kept)[1]))
    names = sorted(found)
    assert any(name.endswith(".link_more") for name in names)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    assert (VERSION, digest) == OF_VERSION, names
