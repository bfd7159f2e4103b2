"""Replicas that join and leave while a run goes on: at stated times, or as many as their load asks for.

The rule is that of Kubernetes' HorizontalPodAutoscaler: every interval, as many replicas are wanted as would bring the
mean of a metric down, or up, to its target; nothing is done while that is near the target; and fewer are wanted only
once that has been so for a while (https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale).
Its limits on how fast one may go up are not modelled. A metric may also be of requests, not of a replica: a percentile
of a latency over its limit (`slo_metric.py`). Where there is none, as nobody was served, nothing is done.

A replica that joins takes requests when its start-up time is over, and draws power from its beginning. One that leaves
finishes what runs, and hands back what waits; it draws power until then. One that failed for good is missed at the next
decision, and not there any more: another one joins in its place. Decisions are made at the same simulated times however
the run is cut, from the state of the replicas at that very time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pimserve.device_models.plan import FS_PER_S
from pimserve.errors import InputError
from pimserve.quantity import MAX_TIME_S, Quantity, Seconds
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.slo_metric import SLO_LATENCIES, SloMetric

Replicas = Annotated[int, Field(ge=1, le=4096)]
METRICS: Mapping[str, Callable[[ReplicaState], float]] = {
    "requests": lambda state: state.outstanding,
    "kv_usage": lambda state: state.kv_usage,
}
_SLO_METRIC = re.compile(rf"({'|'.join(SLO_LATENCIES)})_p\d+(\.\d+)?_s")


class SizeChange(BaseModel):
    """From then on, so many replicas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_s: Seconds = Field(description="simulated time")
    replicas: Replicas = Field(description="how many are wanted from then on")


class PoolScaling(BaseModel):
    """How many replicas of a pool there are, and when; at most those of `cluster`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Replicas | None = Field(None, description="replicas at the beginning; default: min_replicas")
    min_replicas: Replicas = Field(1, description="never fewer")
    start_up_s: Seconds = Field(60.0, description="until a replica that joins takes requests")
    changes: Annotated[tuple[SizeChange, ...], Field(max_length=10_000)] = Field(
        (), description="sizes at stated times, in order; in place of a metric"
    )
    metric: str | None = Field(
        None,
        description="requests: those that wait or run on a replica; kv_usage: share of its KV blocks in use; or a "
        "limit of `slo` at a percentile of ttft, tpot or e2e, such as ttft_p90_s: that percentile, of requests that "
        "had their first token (of tpot and e2e, their last one) since the last decision, over the limit",
    )
    target: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None,
        description="what the metric is to be, mean over replicas; of kv_usage at most 1; of a latency over its limit, "
        "1 by default",
    )
    interval_s: Annotated[float, Quantity("s", least=0.001, most=MAX_TIME_S)] = Field(
        15.0, description="between two decisions"
    )
    tolerance: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="nothing is done while the metric is as near to its target, relative"
    )
    stabilization_s: Seconds = Field(
        300.0, description="of so long, the most replicas that were wanted count, before any leave"
    )

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str | None) -> str | None:
        if metric is not None and metric not in METRICS and not _SLO_METRIC.fullmatch(metric):
            raise ValueError("must be requests, kv_usage, or a limit of slo at a percentile, such as ttft_p90_s")
        return metric

    @field_validator("target")
    @classmethod
    def _of_a_share(cls, target: float | None, info: ValidationInfo) -> float | None:
        if target is not None and target > 1 and info.data.get("metric") == "kv_usage":
            raise ValueError("must be above 0 and at most 1 with metric: kv_usage, which is a share")
        return target

    @property
    def of_slo(self) -> bool:
        """Whether the metric is a latency over its limit."""
        return self.metric is not None and self.metric not in METRICS

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.target is None and self.metric in METRICS:
            raise ValueError(f"metric: {self.metric} needs a target")
        if self.metric is None and self.target is not None:
            raise ValueError("target needs a metric")
        if bool(self.changes) == (self.metric is not None):
            raise ValueError("give either changes, or metric and target")
        if self.changes:
            for key in ("interval_s", "tolerance", "stabilization_s"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} has no effect without metric and target")
        times = [round(change.at_s * FS_PER_S) for change in self.changes]
        if times != sorted(set(times)):
            raise ValueError("changes must be in order of at_s, each at a time of its own, to a femtosecond")
        return self


class AutoscalingSpec(BaseModel):
    """Replicas that join and leave while the run goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: PoolScaling | None = Field(None, description="without cluster.pools")
    prefill: PoolScaling | None = Field(None, description="those of cluster.pools.prefill")
    decode: PoolScaling | None = Field(None, description="those of cluster.pools.decode")

    def of_pools(self, pools: Mapping[str, int]) -> dict[str, PoolScaling]:
        """What holds for each pool that changes its size, by its name.

        Args:
            pools: replicas of each; "" for the only one.

        Raises:
            InputError: it is about a pool that there is not, or about more replicas than it has.
        """
        known = {"replicas" if name == "" else name: name for name in pools}
        found = {}
        for key in type(self).model_fields:
            spec: PoolScaling | None = getattr(self, key)
            if spec is None:
                continue
            where = f"autoscaling.{key}"
            if key not in known:
                raise InputError(where, f"there is no such pool (there are {', '.join(known)})")
            most = pools[known[key]]
            sizes = {f"changes.{n}.replicas": change.replicas for n, change in enumerate(spec.changes)}
            sizes |= {"min_replicas": spec.min_replicas, "start": spec.start or spec.min_replicas}
            for place, size in sizes.items():
                least = 1 if place == "min_replicas" else spec.min_replicas
                if not least <= size <= most:
                    raise InputError(
                        f"{where}.{place}",
                        f"{size}: must be from {least} to the {most} replicas there are",
                    )
            found[known[key]] = spec
        if not found:
            raise InputError("autoscaling", f"names no pool (there are {', '.join(known)})")
        return found


@dataclass(frozen=True, slots=True)
class Scaling:
    """A decision: at that time, from so many replicas to so many. `metric`: what it was, if any; a mean over them.

    `before`: without those that failed for good.
    """

    at_fs: int
    pool: str
    before: int
    after: int
    metric: float | None


class PoolScaler:
    """Decides which replicas of a pool there are.

    Args:
        pool: its name.
        numbers: of its replicas.
        spec: the rule.
        slo: the metric, if it is a latency over its limit.
    """

    def __init__(self, pool: str, numbers: range, spec: PoolScaling, slo: SloMetric | None = None) -> None:
        self.spec = spec
        self.slo = slo
        self.events: list[Scaling] = []
        self.pool = pool
        self.numbers = numbers
        self._present = list(numbers[: spec.start or spec.min_replicas])  # or starting
        self._starting: dict[int, int] = {}  # when they take requests
        self._wanted: list[tuple[int, int]] = []  # (time, replicas) of the last decisions, for as long as they count
        self._interval_fs = round(spec.interval_s * FS_PER_S)
        self._next = 0  # of the stated changes
        self._decided_fs = 0
        self._left: dict[int, int] = {replica: 0 for replica in numbers if replica not in self._present}
        self._away: list[tuple[int, int, int]] = []  # (replica, from, until) of those that came back
        self.away_at_first = len(self._left)

    @property
    def away(self) -> Sequence[int]:
        """Replicas that are not there, and not about to be."""
        return list(self._left)

    @property
    def next_fs(self) -> int | None:
        """When the next decision is made."""
        if self.spec.metric is not None:
            return self._decided_fs + self._interval_fs
        changes = self.spec.changes
        return round(changes[self._next].at_s * FS_PER_S) if self._next < len(changes) else None

    def decide(
        self, now_fs: int, states: Sequence[ReplicaState], lost: Container[int] = ()
    ) -> list[tuple[int, int, bool]]:
        """(when, replica, whether it leaves) of what follows from the states at a time that is `next_fs`.

        Those that are `lost` for good are not there any more, and never join.
        """
        for replica in [replica for replica in self._present if replica in lost]:
            self._present.remove(replica)
            self._left[replica] = now_fs
        self._starting = {
            replica: at_fs for replica, at_fs in self._starting.items() if at_fs > now_fs and replica not in lost
        }
        spare = [replica for replica in self._left if replica not in lost]
        before, metric, most = len(self._present), None, len(self._present) + len(spare)
        if self.spec.metric is None:
            wanted = min(self.spec.changes[self._next].replicas, most)
            self._next += 1
        else:
            self._decided_fs = now_fs
            metric, asked = self._asked_for(now_fs, states)
            wanted = self._in_bounds(now_fs, asked, most)
        changes = [self._join(replica, now_fs, states) for replica in sorted(spare)[: max(0, wanted - before)]]
        changes += [self._leave(now_fs) for _ in range(before - wanted)]
        if wanted != before:
            self.events.append(Scaling(now_fs, self.pool, before, wanted, metric))
        return changes

    def away_fs(self, replica: int, states: Sequence[ReplicaState], until_fs: int) -> int:
        """How long it was not there, and had nothing to finish, until then."""
        before = sum(min(back, until_fs) - min(gone, until_fs) for who, gone, back in self._away if who == replica)
        return before + max(0, until_fs - self._drained_fs(replica, states, until_fs))

    def _asked_for(self, now_fs: int, states: Sequence[ReplicaState]) -> tuple[float | None, int]:
        """What the metric is now, and how many replicas it asks for: without it, as many as there are."""
        spec, before = self.spec, len(self._present)
        ready = [replica for replica in self._present if replica not in self._starting]
        target = 1.0 if spec.target is None else spec.target
        if self.slo is not None:
            over_limit = self.slo.over_limit(now_fs)
            if over_limit is None or abs(over_limit / target - 1) <= spec.tolerance:
                return over_limit, before
            return over_limit, math.ceil(over_limit * len(ready) / target)  # those that start had no part in it
        assert spec.metric is not None
        # Those that are starting have nothing yet, and count as that.
        total = sum(METRICS[spec.metric](states[replica]) for replica in ready)
        near = before > 0 and abs(total / (target * before) - 1) <= spec.tolerance
        return total / before if before else None, before if near else math.ceil(total / target)

    def _in_bounds(self, now_fs: int, asked: int, most: int) -> int:
        """So many replicas, but no more or fewer than there may be, and as many as were wanted of late."""
        spec, before = self.spec, len(self._present)
        wanted = min(max(asked, spec.min_replicas), most)
        since_fs = now_fs - round(spec.stabilization_s * FS_PER_S)
        self._wanted = [*((at, size) for at, size in self._wanted if at > since_fs), (now_fs, wanted)]
        return wanted if wanted >= before else min(before, max(size for _, size in self._wanted))

    def _join(self, replica: int, now_fs: int, states: Sequence[ReplicaState]) -> tuple[int, int, bool]:
        self._away.append((replica, self._drained_fs(replica, states, now_fs), now_fs))
        del self._left[replica]
        self._present.append(replica)
        # A change takes effect in a window that begins now.
        self._starting[replica] = at_fs = now_fs + max(1, round(self.spec.start_up_s * FS_PER_S))
        return at_fs, replica, False

    def _leave(self, now_fs: int) -> tuple[int, int, bool]:
        """The one that came last leaves first: it is the one that may still be starting."""
        replica = self._present.pop()
        self._starting.pop(replica, None)
        self._left[replica] = now_fs + 1
        return now_fs + 1, replica, True

    def _drained_fs(self, replica: int, states: Sequence[ReplicaState], until_fs: int) -> int:
        """Since when it is not there and has nothing to finish; `until_fs` if it is, or has."""
        state = states[replica]
        if replica not in self._left or state.running or state.waiting or state.kv_blocks_used:
            return until_fs
        return min(until_fs, max(self._left[replica], state.clock_fs if state.steps else 0))

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "events": [asdict(event) for event in self.events],
            "present": self._present,
            "starting": list(self._starting.items()),
            "wanted": self._wanted,
            "next": self._next,
            "decided_fs": self._decided_fs,
            "left": list(self._left.items()),
            "away": self._away,
            "slo": None if self.slo is None else self.slo.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.events = [Scaling(**event) for event in state["events"]]
        self._present = list(state["present"])
        self._starting, self._left = dict(state["starting"]), dict(state["left"])
        self._wanted = [(at, size) for at, size in state["wanted"]]
        self._next, self._decided_fs = state["next"], state["decided_fs"]
        self._away = [(replica, gone, back) for replica, gone, back in state["away"]]
        if self.slo is not None:
            self.slo.restore(state["slo"])
