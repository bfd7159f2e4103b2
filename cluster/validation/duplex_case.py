"""The setting of a target of the Duplex paper, from its `case` and its metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pimserve.cluster.scenario.steady_state import ClosedLoop
from pimserve.cluster.validation.duplex_loops import ServedLoop, served_loop
from pimserve.cluster.validation.duplex_metric import Metric
from pimserve.cluster.validation.duplex_systems import MODELS, Cluster, System, SystemName, build
from pimserve.cluster.validation.targets import Target
from pimserve.errors import InputError

StageKind = Literal["decoding-only", "mixed"]

# Table I and section VI: the clusters that the models run on, where a case does not say.
CLUSTERS = {
    "Mixtral": Cluster(1, 4),
    "OPT": Cluster(1, 4),
    "Llama3": Cluster(1, 4),
    "GLaM": Cluster(1, 8),
    "Grok1": Cluster(2, 8),
}
_KEYS = ("model", "cluster", "batch", "Lin", "Lout", "system", "baseline", "stage", "qps")
_KEYS_OF_OTHER_QUANTITIES = ("scope", "gemm", "opb", "unit", "operator", "op", "layer", "component")


@dataclass(frozen=True, slots=True)
class Case:
    """One setting. `unlimited`: the batch is taken as given even where its KV cache would not fit."""

    model: str
    cluster: Cluster
    loop: ClosedLoop
    stage: StageKind | None
    qps: float | None
    unlimited: bool

    def system(self, name: SystemName) -> System:
        """A system on the case's devices."""
        return build(self.model, self.cluster, name)

    def served(self, name: SystemName) -> ServedLoop:
        """A system in the case's loop."""
        return served_loop(self.model, self.cluster, name, self.loop, unlimited=self.unlimited)

    def fitting(self, name: SystemName) -> ServedLoop:
        """A system in the case's loop, with the requests that fit."""
        return served_loop(self.model, self.cluster, name, self.loop)


def read_case(target: Target, metric: Metric) -> Case:
    """The setting of a target.

    Raises:
        InputError: something is missing, out of range or unknown.
    """
    case = target.case
    model = case.get("model")
    if model not in MODELS:
        raise InputError(target.where, f"unknown case.model {model!r} (known: {', '.join(MODELS)})")
    loop = ClosedLoop(_count(target, "batch", 1), _count(target, "Lin", 1), _count(target, "Lout", 2))
    stage = case.get("stage")
    if stage not in (None, "decoding-only", "mixed"):
        raise InputError(target.where, f"unknown case.stage {stage!r} (known: decoding-only, mixed)")
    qps = case.get("qps")
    if qps is not None and (not isinstance(qps, int | float) or isinstance(qps, bool) or not 0 < qps < 1e6):
        raise InputError(target.where, f"case.qps must be a number above 0 (got {qps!r})")
    return Case(
        model=model,
        cluster=metric.cluster or CLUSTERS[model],
        loop=loop,
        stage=stage,
        qps=qps,
        unlimited=not metric.capacity_limit,
    )


def ignored_keys(target: Target) -> list[str]:
    """Keys of a target's case that mean nothing here, and change nothing."""
    return [key for key in target.case if key not in _KEYS + _KEYS_OF_OTHER_QUANTITIES]


def describe(target: Target) -> str:
    """A target's settings as one line of text."""
    case = target.case
    if case.get("scope") == "aggregate":
        return "over several settings"
    if "unit" in case:
        return f"{case['unit']}, {case.get('gemm', 'GEMM')} = {case.get('opb')}"
    parts = [str(case[key]) for key in ("model", "cluster") if key in case]
    if "batch" in case:
        parts.append(f"batch {case['batch']}")
    if "Lin" in case:
        parts.append(f"Lin {case['Lin']} Lout {case.get('Lout')}")
    if case.get("stage"):
        parts.append(f"{case['stage']} stage")
    if case.get("qps"):
        parts.append(f"{case['qps']} req/s")
    if case.get("system"):
        parts.append(str(case["system"]) + (f" / {case['baseline']}" if case.get("baseline") else ""))
    return ", ".join(parts)


def _count(target: Target, key: str, least: int) -> int:
    value = target.case.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 10**6:
        raise InputError(target.where, f"case.{key} must be a whole number from {least} to 1000000 (got {value!r})")
    return value
