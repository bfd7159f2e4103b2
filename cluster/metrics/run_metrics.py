"""All metrics of a run as of one moment, as plain arrays: what a process sends to another, and what is exposed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.metrics.families import BY_NAME, PERCENTILES_SO_FAR
from pimserve.cluster.metrics.layout import Layout, kinds, layout_of, limits_at_percentiles, tiers
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True)
class RunMetrics:
    """Metrics of a run as of one moment.

    Args:
        layout: which series there are.
        values: by family that is no histogram, (n,) values.
        counts: by histogram, (n, buckets + 1) samples in each bucket, the last above all bounds.
        sums: by histogram, (n,) sum of the samples.
    """

    layout: Layout
    values: dict[str, Array] = field(default_factory=dict)
    counts: dict[str, Array] = field(default_factory=dict)
    sums: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def zero(cls, layout: Layout) -> RunMetrics:
        """Of a run that has not begun: every series is there, and 0, or not a number without samples."""
        metrics = cls(layout)
        for name, keys in layout.keys.items():
            if BY_NAME[name].kind == "histogram":
                metrics.counts[name] = np.zeros((len(keys), len(layout.bounds[name]) + 1), np.int64)
                metrics.sums[name] = np.zeros(len(keys))
            else:
                metrics.values[name] = np.zeros(len(keys))
        for name in PERCENTILES_SO_FAR:
            metrics.values[name][:] = np.nan
        metrics.values["pimserve_run_info"][:] = metrics.values["pimserve_class_info"][:] = 1
        return metrics

    def copy(self) -> RunMetrics:
        """The same, in arrays of its own."""
        parts = ({name: array.copy() for name, array in part.items()} for part in (self.values, self.counts, self.sums))
        return RunMetrics(self.layout, *parts)

    def pack(self) -> bytes:
        """All values, for a process that has the layout: little-endian doubles in the order of the families."""
        return np.concatenate([np.ravel(array) for array in self._arrays()]).astype("<f8").tobytes()

    @classmethod
    def unpack(cls, layout: Layout, data: bytes) -> RunMetrics:
        """What `pack` wrote.

        Raises:
            InputError: it is of another layout.
        """
        metrics = cls.zero(layout)
        arrays = metrics._arrays()
        if len(data) != 8 * sum(array.size for array in arrays):
            raise InputError("metrics", f"{len(data):,} bytes do not belong to this run")
        values = np.frombuffer(data, "<f8")
        for array, part in zip(arrays, np.split(values, np.cumsum([array.size for array in arrays])[:-1]), strict=True):
            array[...] = part.reshape(array.shape)
        return metrics

    def to_bytes(self) -> bytes:
        """Layout and values, for a file."""
        return self.layout.to_json().encode() + b"\n" + self.pack()

    @classmethod
    def from_bytes(cls, content: bytes) -> RunMetrics:
        """What `to_bytes` wrote.

        Raises:
            InputError: it is something else, or of another version.
        """
        text, _, data = content.partition(b"\n")
        return cls.unpack(Layout.from_json(text.decode(errors="replace")), data)

    def observe(self, name: str, rows: NDArray[np.int64], samples: Array) -> None:
        """Put samples into a histogram, (n,) each: the row, and the value."""
        counts, edges = self.counts[name], self.layout.bounds[name]
        bucket = np.searchsorted(edges, samples)
        flat = np.bincount(rows * counts.shape[1] + bucket, minlength=counts.size)
        counts += flat.reshape(counts.shape)
        self.sums[name] += np.bincount(rows, samples, minlength=len(counts))

    def _arrays(self) -> list[Array]:
        return [array for part in (self.values, self.counts, self.sums) for array in part.values()]


def run_id_of(folder: Path) -> str:
    """The label of a run: its results folder's name; what of that is no text becomes question marks."""
    return folder.resolve().name.encode("utf-8", "replace").decode()


def metrics_of(prepared: Prepared, run_id: str, *, speed: float = 0.0, per_engine: bool = False) -> RunMetrics:
    """Metrics of a run of the scenario that has not begun: what does not change is there, all else is 0.

    Args:
        prepared: what runs.
        run_id: its label.
        speed: simulated seconds per second; 0: as fast as possible.
        per_engine: histograms of each engine, also where there are so many that they are merged.
    """
    metrics = RunMetrics.zero(layout_of(prepared, run_id, speed=speed, per_engine=per_engine))
    limits = prepared.scenario.slo.limits()
    metrics.values["pimserve_slo_limit_seconds"][:] = [
        limits[f"{slo}_s"] for _, slo in metrics.layout.keys["pimserve_slo_limit_seconds"]
    ]
    for of, slos in (("", (prepared.objectives.of_run,)), ("class_", prepared.objectives.of_classes)):
        metrics.values[f"pimserve_{of}slo_percentile_limit_seconds"][:] = [
            limit.limit_s for slo in slos for limit in limits_at_percentiles(slo, gaps=not of)
        ]
    if (stages := metrics.layout.stages) is not None:
        metrics.values["pimserve_stage_offered_rate"][:] = [stage.rate_per_s for stage in stages.stages]
    replicas, model = prepared.pool_of_replica, prepared.model
    windowed = model.kv_bytes_per_token_layer * model.windowed_layers
    for name, values in {
        "pimserve_devices": [pool.devices_per_replica for pool in replicas],
        "pimserve_group_devices": [kind.devices_per_replica for pool in replicas for _, kind in kinds(pool)],
        "pimserve_group_weight_bytes": [
            kind.replica.weight_bytes_per_device for pool in replicas for _, kind in kinds(pool)
        ],
        "pimserve_device_weight_bytes": [pool.replica.weight_bytes_per_device for pool in replicas],
        "pimserve_device_kv_capacity_bytes": [
            pool.kv_capacity_tokens
            * (pool.kv_groups.bytes_per_token(model.kv_bytes_per_token, windowed) + pool.draft_kv_bytes_per_token)
            for pool in replicas
        ],
        "pimserve_device_tiers": [number for pool in replicas for number in tiers(pool) or ()],
        "pimserve_engine_up": [1] * len(replicas),
        "pimserve_kv_cache_blocks": prepared.kv_blocks,
        "pimserve_kv_cache_block_tokens": [prepared.scenario.scheduler.block_size] * len(replicas),
    }.items():
        metrics.values[name][:] = values
    return metrics
