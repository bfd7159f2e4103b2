"""All metrics of a run as of one moment, as plain arrays: what a process sends to another, and what is exposed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve import __version__
from pimserve.cluster.metrics.families import ALL_ENGINES, BY_NAME, DEVICE, ENGINE, FAMILIES, Family, bounds
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.pools import PlacedPool
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.device_models.operators import CATEGORIES
from pimserve.device_models.plan import HOST, LINK
from pimserve.errors import InputError
from pimserve.scheduler.fleet import DECODE
from pimserve.scheduler.handover import Link
from pimserve.scheduler.outcomes import ALL
from pimserve.scheduler.requests import REJECT_REASONS
from pimserve.scheduler.stability import STATES

HANDOVER = "handover"  # of KV caches, among the operators that use links
MOST_ENGINES = 64  # of which histograms are kept apart
Keys = tuple[tuple[str, ...], ...]
Array = NDArray[Any]
_SLOS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Layout:
    """Which series a run has; does not change while it goes.

    Args:
        keys: by family, values of its labels of each series.
        bounds: by histogram, upper bounds of its buckets without +Inf.
        engines: number and role of each replica.
        histogram_rows: row of each replica in histograms.
        max_model_len: tokens that a request may have.
        link_bytes: of each series of link bytes, bytes for each token that is computed, and for each that is sampled.
        handover: how KV caches come from the prefill pool.
    """

    keys: Mapping[str, Keys]
    bounds: Mapping[str, tuple[float, ...]]
    engines: tuple[tuple[int, str], ...]
    histogram_rows: tuple[int, ...]
    max_model_len: int
    link_bytes: tuple[tuple[float, float], ...] = ()
    handover: Link | None = None

    @property
    def run_id(self) -> str:
        """Of the run."""
        return self.keys["pimserve_run_info"][0][0]

    @cached_property
    def edges(self) -> dict[str, list[str]]:
        """By histogram, the values of `le`."""
        return {name: [*map(_edge, found), "+Inf"] for name, found in self.bounds.items()}

    @cached_property
    def texts(self) -> dict[str, str]:
        """By family, the text of its series with places for their values, once it was written (exposition.py)."""
        return {}

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """What `to_json` wrote.

        Raises:
            InputError: it is something else, or of another version.
        """
        try:
            document = json.loads(text)
            return cls(
                {BY_NAME[name].name: tuple(tuple(key) for key in keys) for name, keys in document["keys"].items()},
                {BY_NAME[name].name: tuple(found) for name, found in document["bounds"].items()},
                tuple((number, role) for number, role in document["engines"]),
                tuple(document["histogram_rows"]),
                int(document["max_model_len"]),
                tuple((computed, sampled) for computed, sampled in document["link_bytes"]),
                None if document["handover"] is None else Link(**document["handover"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("metrics", f"no layout of this version: {type(error).__name__} {error}") from None


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
        """Of a run that has not begun: every series is there, and 0."""
        found = cls(layout)
        for name, keys in layout.keys.items():
            if BY_NAME[name].kind == "histogram":
                found.counts[name] = np.zeros((len(keys), len(layout.bounds[name]) + 1), np.int64)
                found.sums[name] = np.zeros(len(keys))
            else:
                found.values[name] = np.zeros(len(keys))
        found.values["pimserve_run_info"][:] = 1
        return found

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
        found = cls.zero(layout)
        arrays = found._arrays()
        if len(data) != 8 * sum(array.size for array in arrays):
            raise InputError("metrics", f"{len(data):,} bytes do not belong to this run")
        values = np.frombuffer(data, "<f8")
        for array, part in zip(arrays, np.split(values, np.cumsum([array.size for array in arrays])[:-1]), strict=True):
            array[...] = part.reshape(array.shape)
        return found

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

    def _arrays(self) -> list[Array]:
        return [array for part in (self.values, self.counts, self.sums) for array in part.values()]


def run_id_of(folder: Path) -> str:
    """The label of a run: its results folder's name; what of that is no text becomes question marks."""
    return folder.resolve().name.encode("utf-8", "replace").decode()


def metrics_of(prepared: Prepared, run_id: str, *, speed: float = 0.0, most_engines: int = MOST_ENGINES) -> RunMetrics:
    """Metrics of a run of the scenario that has not begun: what does not change is there, all else is 0.

    Args:
        prepared: what runs.
        run_id: its label.
        speed: simulated seconds per second; 0: as fast as possible.
        most_engines: with more replicas, histograms hold all of them together.
    """
    found = RunMetrics.zero(_layout(prepared, run_id, speed, most_engines))
    limits = prepared.scenario.slo.limits()
    found.values["pimserve_slo_limit_seconds"][:] = [
        limits[f"{slo}_s"] for _, slo in found.layout.keys["pimserve_slo_limit_seconds"]
    ]
    replicas = prepared.pool_of_replica
    for name, values in {
        "pimserve_devices": [pool.devices_per_replica for pool in replicas],
        "pimserve_device_weight_bytes": [pool.replica.weight_bytes_per_device for pool in replicas],
        "pimserve_device_kv_capacity_bytes": [
            pool.kv_capacity_tokens * prepared.model.kv_bytes_per_token for pool in replicas
        ],
        "pimserve_device_tiers": [number for pool in replicas for number in tiers(pool) or ()],
        "pimserve_engine_up": [1] * len(replicas),
        "pimserve_kv_cache_blocks": prepared.kv_blocks,
        "pimserve_kv_cache_block_tokens": [prepared.scenario.scheduler.block_size] * len(replicas),
    }.items():
        found.values[name][:] = values
    return found


def _layout(prepared: Prepared, run_id: str, speed: float, most_engines: int) -> Layout:
    scenario = prepared.scenario
    engines = [(pool, str(number)) for number, pool in enumerate(prepared.pool_of_replica)]
    together = len(engines) > most_engines
    roles = tuple((int(number), role(pool)) for pool, number in engines)
    limits = scenario.slo.limits()
    slos = [slo for slo in _SLOS if f"{slo}_s" in limits]
    judged = [*slos, ALL] if slos else []
    info = (
        run_id,
        scenario.name,
        prepared.model.name,
        prepared.device,
        str(scenario.run.seed),
        _workload(scenario),
        " + ".join(dict.fromkeys(str(pool.replica.costs["setting"]) for pool in prepared.pools)),
        f"{speed:g}x" if speed else "unpaced",
        __version__,
    )
    own: dict[str, Keys] = {
        "pimserve_run_info": (info,),
        "pimserve_requests_total": tuple((run_id, outcome) for outcome in ("finished", "rejected")),
        "pimserve_admission_rejections_total": tuple((run_id, reason) for reason in REJECT_REASONS if reason),
        "pimserve_slo_censored_requests_total": tuple((run_id, slo) for slo in judged),
        "pimserve_run_stability": tuple((run_id, state) for state in STATES),
        "pimserve_slo_requests_total": tuple((run_id, slo, result) for slo in judged for result in ("met", "missed")),
        "pimserve_slo_limit_seconds": tuple((run_id, slo) for slo in slos),
    }
    collapsed = tuple((run_id, ALL_ENGINES, found) for found in dict.fromkeys(name for _, name in roles))
    keys: dict[str, Keys] = {}
    for family in FAMILIES:
        if family.name in own:
            keys[family.name] = own[family.name]
        elif family.labels[: len(DEVICE)] == DEVICE:
            keys[family.name] = tuple(
                (run_id, number, role(pool), pool.label, *rest)
                for pool, number in engines
                for rest in _of_devices(family, pool)
            )
        elif family.labels == ENGINE and family.kind == "histogram" and together:
            keys[family.name] = collapsed
        elif family.labels == ENGINE:
            keys[family.name] = tuple((run_id, number, role(pool)) for pool, number in engines)
        else:
            keys[family.name] = ((run_id,),)
    rows = [name for _, _, name in collapsed]
    return Layout(
        keys,
        {family.name: bounds(family, limits) for family in FAMILIES if family.kind == "histogram"},
        roles,
        tuple(rows.index(name) if together else index for index, (_, name) in enumerate(roles)),
        prepared.longest_request,
        tuple(_link_bytes(pool, *names) for pool, _ in engines for names in _links(pool)),
        prepared.link,
    )


def _edge(bound: float) -> str:
    """A value of `le`, as the client libraries write it: Go's, which has exponents from a million on."""
    return repr(bound) if bound < 1e6 else np.format_float_scientific(bound, trim="-", exp_digits=2)


def _links(pool: PlacedPool) -> Sequence[tuple[str, str]]:
    """Operators that send bytes, and the links that these go over."""
    handover = [(HANDOVER, "inter_pool")] if pool.name == DECODE else []
    return [*dict.fromkeys((each.operator, each.link) for each in pool.replica.traffic), *handover]


def _link_bytes(pool: PlacedPool, operator: str, link: str) -> tuple[float, float]:
    """Bytes that an operator sends over a kind of link for each token that is computed, and each that is sampled."""
    found = {"tokens": 0.0, "outputs": 0.0}
    for each in pool.replica.traffic:
        if (each.operator, each.link) == (operator, link):
            found[each.rows] += each.bytes_per_row
    return found["tokens"], found["outputs"]


def _workload(scenario: Scenario) -> str:
    spec = scenario.workload
    return spec.preset or (f"trace {Path(spec.trace.path).name}" if spec.trace is not None else "synthetic")


def role(pool: PlacedPool) -> str:
    """What the replicas of a pool do, in the words of serving engines."""
    return pool.name or "mixed"


def units(pool: PlacedPool) -> tuple[str, ...]:
    """Units of the pool's devices, as their ledgers name them."""
    plan = pool.replica.plan
    links = () if plan.pipeline is not None else (LINK,)
    host = (HOST,) if any(term.unit == HOST for term in plan.rows) else ()
    return (*plan.units, *links, *host)


def _of_devices(family: Family, pool: PlacedPool) -> Sequence[tuple[str, ...]]:
    """Values of the labels that a device family has of its own."""
    if family.name in {"pimserve_device_busy_seconds_total", "pimserve_busiest_device_busy_seconds_total"}:
        return [(unit,) for unit in units(pool)]
    if family.name == "pimserve_operator_time_seconds_total":
        return [(category,) for category in CATEGORIES]
    if family.name == "pimserve_device_energy_joules_total":
        passive = [("passive", "passive")] if pool.replica.plan.passive is not None else []
        return [*((category, part) for category in CATEGORIES for part in ("dram", "compute")), *passive]
    if family.name == "pimserve_link_bytes_total":
        return _links(pool)
    if family.name == "pimserve_device_tiers":
        return [("used",), ("total",)] if tiers(pool) else []
    return [()]


def tiers(pool: PlacedPool) -> tuple[int, int] | None:
    """Crossbar tiers of each chip: those in use, and all; None for other devices."""
    facts = pool.replica.facts
    if "tiers_used" not in facts:
        return None
    return facts["tiers_used"], facts["tiers"]
