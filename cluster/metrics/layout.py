"""Which series a run has: label values and buckets, fixed when it begins. It follows from the scenario."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from prometheus_client.utils import floatToGoString

from pimserve import __version__
from pimserve.cluster.metrics.families import (
    ALL_ENGINES,
    AT_PERCENTILES,
    BY_NAME,
    FAMILIES,
    MERGED_ABOVE,
    MOST_STAGES,
    PREFIX_CACHE,
    SPEC_DECODE,
)
from pimserve.cluster.metrics.family import (
    CLASS,
    CLASS_INFO,
    DECISION,
    DEVICE,
    ENGINE,
    GROUP,
    PREEMPTION,
    STAGE,
    TIER,
    Family,
    bounds,
)
from pimserve.cluster.metrics.tier_families import KV_LOADS, KV_TIERS
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import GROUP_NAMES, GROUPS
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.device_models.evaluate import units_of
from pimserve.device_models.operators import CATEGORIES
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.rate_stages import Stage, Stages
from pimserve.loadgen.request_classes import ClassSpec
from pimserve.loadgen.slo import LimitAtPercentile, SloSpec
from pimserve.loadgen.workload import stages_ahead
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import DECODE, PREFILL
from pimserve.scheduler.group_times import IDLE
from pimserve.scheduler.handover import Link
from pimserve.scheduler.outcomes import ALL
from pimserve.scheduler.requests import PREEMPTION_CAUSES, REJECT_REASONS
from pimserve.scheduler.router_protocol import REASONS
from pimserve.scheduler.stability import STATES
from pimserve.scheduler.totals import energy_categories

HANDOVER = "handover"  # of KV caches, among the operators that use links
Keys = tuple[tuple[str, ...], ...]
_SLOS = ("ttft", "tpot", "e2e", "itl_max")


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
        link_tokens: of each series of link tokens, likewise.
        handover: how KV caches come from the prefill pool.
        stages: of an arrival rate that steps, where these have series of their own.
        classes: names of the classes of requests.
    """

    keys: Mapping[str, Keys]
    bounds: Mapping[str, tuple[float, ...]]
    engines: tuple[tuple[int, str], ...]
    histogram_rows: tuple[int, ...]
    max_model_len: int
    link_bytes: tuple[tuple[float, float], ...] = ()
    link_tokens: tuple[tuple[float, float], ...] = ()
    handover: Link | None = None
    stages: Stages | None = None
    classes: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        """Of the run."""
        return self.keys["pimserve_run_info"][0][0]

    @property
    def merged(self) -> bool:
        """Whether histograms hold the samples of all engines of a role."""
        return len(set(self.histogram_rows)) < len(self.engines)

    @cached_property
    def edges(self) -> dict[str, list[str]]:
        """By histogram, the values of `le`."""
        return {name: [*map(floatToGoString, bounds), "+Inf"] for name, bounds in self.bounds.items()}

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
                {BY_NAME[name].name: tuple(bounds) for name, bounds in document["bounds"].items()},
                tuple((number, role) for number, role in document["engines"]),
                tuple(document["histogram_rows"]),
                int(document["max_model_len"]),
                _pairs(document["link_bytes"]),
                _pairs(document["link_tokens"]),
                None if document["handover"] is None else Link(**document["handover"]),
                None if document["stages"] is None else _stages(**document["stages"]),
                tuple(document["classes"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("metrics", f"no layout of this version: {type(error).__name__} {error}") from None


def layout_of(prepared: Prepared, run_id: str, *, speed: float, per_engine: bool) -> Layout:
    """The series of a run.

    Args:
        prepared: what runs.
        run_id: its label.
        speed: simulated seconds per second; 0: as fast as possible.
        per_engine: histograms of each engine, also above `MERGED_ABOVE` of them.
    """
    replicas = prepared.pool_of_replica
    engines = tuple((number, role(pool)) for number, pool in enumerate(replicas))
    if per_engine or len(engines) <= MERGED_ABOVE:
        histograms = tuple((run_id, str(number), name) for number, name in engines)
        rows = tuple(range(len(engines)))
    else:
        roles = list(dict.fromkeys(name for _, name in engines))
        histograms = tuple((run_id, ALL_ENGINES, name) for name in roles)
        rows = tuple(roles.index(name) for _, name in engines)
    of_run = _keys_of_run(prepared, run_id, speed)
    stages = stages_ahead(prepared.scenario.workload, prepared.scenario.run.seed)
    if stages is not None and len(stages.stages) > MOST_STAGES:
        stages = None
    classes, objectives = prepared.scenario.workload.classes or (), prepared.objectives
    keys: dict[str, Keys] = {}
    for family in FAMILIES:
        if family.labels[: len(DEVICE)] == DEVICE:
            keys[family.name] = tuple(
                (run_id, str(number), role(pool), *more)
                for number, pool in enumerate(replicas)
                for more in _of_devices(family, pool)
            )
        elif family.labels[: len(STAGE)] == STAGE:
            numbers = range(0 if stages is None else len(stages.stages))
            keys[family.name] = _of_parts(family, run_id, map(str, numbers), limited=bool(objectives.names()))
        elif family.labels[: len(CLASS)] == CLASS:
            keys[family.name] = _of_classes(family, run_id, classes, objectives)
        elif family.kind == "histogram":
            keys[family.name] = histograms
        elif family.name in _without(prepared.scenario.scheduler):
            keys[family.name] = ()
        elif family.labels == DECISION:
            shown = () if len(prepared.pools[0].numbers) == 1 else histograms
            keys[family.name] = tuple((*key, reason) for key in shown if key[-1] != "decode" for reason in REASONS)
        elif family.labels[: len(ENGINE)] == ENGINE:
            keys[family.name] = _of_engines(family, run_id, engines, prepared.scenario.scheduler)
        else:
            keys[family.name] = of_run.get(family.name, ((run_id,),))
    limits = {name: objectives.all_limits_s(name) for name in objectives.names()}
    return Layout(
        keys,
        {family.name: bounds(family, limits) for family in FAMILIES if family.kind == "histogram"},
        engines,
        rows,
        prepared.longest_request,
        tuple(_sent(pool, *names, "bytes_per_row") for pool in replicas for names in _links(pool)),
        tuple(_sent(pool, *names, "vectors_per_row") for pool in replicas for names in _links_between(pool)),
        prepared.link,
        stages,
        tuple(each.name for each in classes),
    )


def _without(spec: SchedulerSpec) -> set[str]:
    """Families of engines that have no series by these settings."""
    caches = () if spec.enable_prefix_caching else PREFIX_CACHE
    return {*caches, *(() if spec.kv_tiers else KV_LOADS), *(SPEC_DECODE if spec.speculative is None else ())}


def _of_engines(family: Family, run_id: str, engines: Sequence[tuple[int, str]], spec: SchedulerSpec) -> Keys:
    """Labels of a family of engines; those that decode alone have no tiers, those that never do no drafts."""
    if family.name in {*KV_TIERS, *KV_LOADS}:
        engines = [engine for engine in engines if engine[1] != DECODE]
    elif family.name in SPEC_DECODE:
        engines = [engine for engine in engines if engine[1] != PREFILL]
    more: Mapping[tuple[str, ...], Sequence[tuple[str, ...]]] = {
        ENGINE: [()],
        PREEMPTION: [(cause,) for cause in PREEMPTION_CAUSES],
        TIER: [(tier.name,) for tier in spec.kv_tiers],
    }
    return tuple((run_id, str(number), name, *own) for number, name in engines for own in more[family.labels])


def _stages(stages: Sequence[Mapping[str, float]], first_s: float, last_s: float) -> Stages:
    return Stages(tuple(Stage(**stage) for stage in stages), first_s, last_s)


def _of_classes(family: Family, run_id: str, classes: Sequence[ClassSpec], objectives: Objectives) -> Keys:
    """Labels of a family of classes."""
    if family.labels == CLASS_INFO:
        return tuple((run_id, each.name, each.owner, str(each.priority)) for each in classes)
    if "slo" in family.labels:
        slos = zip(classes, objectives.of_classes, strict=True)
        return tuple(key for each, slo in slos for key in _at_percentiles(slo, run_id, each.name, gaps=False))
    return _of_parts(family, run_id, (each.name for each in classes), limited=bool(objectives.names()))


def _of_parts(family: Family, run_id: str, parts: Iterable[str], *, limited: bool) -> Keys:
    """Labels of a family of stages or classes, by part; `limited`: whether there is an SLO."""
    own: Sequence[tuple[str, ...]] = [()]
    if "outcome" in family.labels:
        own = [("finished",), ("rejected",)]
    elif "result" in family.labels:
        own = [("met",), ("missed",)] if limited else []
    return tuple((run_id, part, *more) for part in parts for more in own)


def _pairs(rows: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    return tuple((computed, sampled) for computed, sampled in rows)


def _keys_of_run(prepared: Prepared, run_id: str, speed: float) -> dict[str, Keys]:
    """Series of the families of a run that have labels beside `run_id`."""
    scenario = prepared.scenario
    limits, names = scenario.slo.limits(), prepared.objectives.names()
    slos = [slo for slo in _SLOS if f"{slo}_s" in names]
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
        scenario.scheduler.policy,
    )
    return {
        "pimserve_run_info": (info,),
        "pimserve_requests_total": tuple((run_id, outcome) for outcome in ("finished", "rejected")),
        "pimserve_admission_rejections_total": tuple((run_id, reason) for reason in REJECT_REASONS if reason),
        "pimserve_slo_censored_requests_total": tuple((run_id, slo) for slo in judged),
        "pimserve_run_stability": tuple((run_id, state) for state in STATES),
        "pimserve_slo_requests_total": tuple((run_id, slo, result) for slo in judged for result in ("met", "missed")),
        "pimserve_slo_limit_seconds": tuple((run_id, slo) for slo in slos if f"{slo}_s" in limits),
        **dict.fromkeys(AT_PERCENTILES, _at_percentiles(scenario.slo, run_id, gaps=True)),
    }


def limits_at_percentiles(slo: SloSpec, *, gaps: bool) -> list[LimitAtPercentile]:
    """Those that have series; `gaps`: those of gaps between tokens too, which are not kept by class."""
    return [limit for limit in slo.at_percentiles() if gaps or limit.latency != "itl"]


def _at_percentiles(slo: SloSpec, *labels: str, gaps: bool) -> Keys:
    """Labels of limits at percentiles: their keys without the unit, such as ttft_p99."""
    return tuple((*labels, limit.key.removesuffix("_s")) for limit in limits_at_percentiles(slo, gaps=gaps))


def _links(pool: PlacedPool) -> Sequence[tuple[str, str]]:
    """Operators that send bytes, and the links that these go over."""
    handover = [(HANDOVER, "inter_pool")] if pool.name == DECODE else []
    return [*dict.fromkeys((traffic.operator, traffic.link) for traffic in pool.replica.traffic), *handover]


def _links_between(pool: PlacedPool) -> Sequence[tuple[str, str]]:
    """The same, of groups of devices alone."""
    return [names for names in _links(pool) if names[1] == "between_groups"]


def _sent(
    pool: PlacedPool, operator: str, link: str, what: Literal["bytes_per_row", "vectors_per_row"]
) -> tuple[float, float]:
    """What an operator sends over a kind of link for each token that is computed, and each that is sampled."""
    sent = {"tokens": 0.0, "outputs": 0.0}
    for traffic in pool.replica.traffic:
        if (traffic.operator, traffic.link) == (operator, link):
            sent[traffic.rows] += getattr(traffic, what)
    return sent["tokens"], sent["outputs"]


def _workload(scenario: Scenario) -> str:
    spec = scenario.workload
    return spec.preset or (f"trace {Path(spec.trace.path).name}" if spec.trace is not None else "synthetic")


def role(pool: PlacedPool) -> str:
    """What the replicas of a pool do, in the words of serving engines."""
    return pool.name or "mixed"


def units(pool: PlacedPool) -> tuple[str, ...]:
    """Units of the pool's devices, as their ledgers name them."""
    return units_of(pool.plan)


def _of_devices(family: Family, pool: PlacedPool) -> Sequence[tuple[str, ...]]:
    """Values of the labels of a device family from the name of the devices on."""
    if family.labels[: len(GROUP)] == GROUP:
        if family.kind == "gauge":
            return [(kind.label, name) for name, kind in kinds(pool)]
        groups = [(group.label, name) for name, group in zip(GROUPS, pool.groups, strict=False)]
        causes = [(cause,) for cause in IDLE] if family.labels != GROUP else [()]
        return [(*group, *cause) for group in groups for cause in causes]
    return [(pool.label, *more) for more in _of_all_devices(family, pool)]


def kinds(pool: PlacedPool) -> list[tuple[str, PlacedPool]]:
    """Groups of devices of one kind each, by name: of hot experts too, where these have their own."""
    named = dict(zip(GROUPS, pool.groups, strict=False))
    hot_and_cold = named["experts"].groups if named else ()
    names = GROUP_NAMES if hot_and_cold else GROUPS
    return list(zip(names, pool.members, strict=True)) if named else []


def _of_all_devices(family: Family, pool: PlacedPool) -> Sequence[tuple[str, ...]]:
    """Values of the labels that a family of all devices of a replica has of its own."""
    if family.name in {"pimserve_device_busy_seconds_total", "pimserve_busiest_device_busy_seconds_total"}:
        return [(unit,) for unit in units(pool)]
    if family.name == "pimserve_operator_time_seconds_total":
        return [(category,) for category in CATEGORIES]
    if family.name == "pimserve_device_energy_joules_total":
        passive = [("passive", "passive")] if pool.plan.passive is not None else []
        return [*((name, part) for name in energy_categories(pool.plan) for part in ("dram", "compute")), *passive]
    if family.name == "pimserve_link_bytes_total":
        return _links(pool)
    if family.name == "pimserve_link_tokens_total":
        return _links_between(pool)
    if family.name == "pimserve_device_tiers":
        return [("used",), ("total",)] if tiers(pool) else []
    return [()]


def tiers(pool: PlacedPool) -> tuple[int, int] | None:
    """Crossbar tiers of each chip: those in use, and all; None for other devices."""
    for group in pool.members:
        if "tiers_used" in group.facts:
            return group.facts["tiers_used"], group.facts["tiers"]
    return None
