"""Simulated faults: when devices fail, slow down or leave, and what that makes of their replicas.

All devices of a replica work together: one that fails stops the replica, a slow one slows it, and one that leaves lets
it finish what runs; `pool_orders.py` says what that means where prefill and decode have replicas of their own. Times
are part of the scenario: given one by one, or drawn for each device from a stream of its own, one after the other, so
that nothing depends on how the run is cut. They are whole femtoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.slowdown import NORMAL
from pimserve.errors import InputError
from pimserve.quantity import PositiveSeconds, Quantity, Seconds
from pimserve.scheduler.autoscaling import PoolScaler
from pimserve.scheduler.control import Ledger, ReplicaState
from pimserve.scheduler.departures import Move
from pimserve.scheduler.slo_metric import SloMetric

Kind = Literal["fail", "slow", "leave"]
_FAULTS = 0xFA17  # of random streams: apart from those of arrivals, lengths and experts
_MANY = 10_000
_SCALED = "scaled"  # a change that is no fault: a replica leaves or joins
_SCALES = -1  # comes before faults of the same time
_MOST_REPLICAS, _MOST_DEVICES = 2 * 4096, 4096**2  # of two pools; of a replica: nodes x devices of each
_MOST_FAILURES = 1e4  # of a replica, in front of one prompt


class FaultEvent(BaseModel):
    """A device fails, slows down or leaves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_s: Seconds = Field(description="simulated time")
    replica: Annotated[int, Field(ge=0, lt=_MOST_REPLICAS)] = Field(description="number of the replica, from 0")
    device: Annotated[int, Field(ge=0, lt=_MOST_DEVICES)] = Field(
        0, description="number of the device in its replica, from 0"
    )
    kind: Kind = Field(
        description="fail: the replica stops, and its KV cache is lost; slow: its steps take `factor` of the time; "
        "leave: it gets no new requests, and finishes those that run"
    )
    for_s: PositiveSeconds | None = Field(None, description="until it is as before; default: never")
    factor: Annotated[float, Field(ge=1.001, le=1000)] | None = Field(
        None, description="with kind: slow, how many times as long steps take, to a thousandth"
    )

    @model_validator(mode="after")
    def _factor_is_of_slow(self) -> Self:
        if (self.kind == "slow") != (self.factor is not None):
            raise ValueError("kind: slow needs factor, and no other kind has one")
        return self


class FaultSpec(BaseModel):
    """Faults of simulated devices, in a list or at random."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    events: Annotated[tuple[FaultEvent, ...], Field(max_length=_MANY)] = Field((), description="faults one by one")
    mtbf_s: PositiveSeconds | None = Field(
        None, description="mean time between failures of a device, exponential; needs repair_s"
    )
    repair_s: PositiveSeconds | None = Field(None, description="until a device that failed at random is back")
    detection_s: Annotated[float, Quantity("s", most=3600)] = Field(
        1.0,
        description="until requests that a failed replica had in hand are missed and go elsewhere (new ones are "
        "refused there at once); the default is a health check every second",
    )

    @model_validator(mode="after")
    def _repair_goes_with_failures(self) -> Self:
        if (self.mtbf_s is None) != (self.repair_s is None):
            raise ValueError("mtbf_s and repair_s go together")
        return self

    def check_progress(self, devices: int, longest_s: float, *, horizon_s: float) -> None:
        """Refuse failures at random that come so often that a run would not end before the clock, or in a lifetime.

        A prompt has to be computed between two failures of its replica, else it begins anew; a replica that takes
        requests over only has to be up now and then, for whoever comes back has one token more. With n devices that are
        up for `mtbf_s` each, in the mean, and away for `repair_s`, a replica is up for U = mtbf / n at a time and for
        the share A = (mtbf / (mtbf + repair))^n of the time, and lasts t with probability exp(-t / U): the longest
        prompt waits U exp(t / U) / A for its turn, or exp(t / U) / A failures.

        Args:
            devices: of a replica.
            longest_s: time that the longest prompt takes alone; 0 where none is computed.
            horizon_s: when the clock ends.

        Raises:
            InputError: the longest prompt would wait longer than that, or for more than ten thousand failures.
        """
        if self.mtbf_s is None or self.repair_s is None:
            return
        up_s = self.mtbf_s / devices
        up_share = (self.mtbf_s / (self.mtbf_s + self.repair_s)) ** devices
        log_failures = longest_s / up_s - devices * math.log(self.mtbf_s / (self.mtbf_s + self.repair_s))
        if log_failures < math.log(_MOST_FAILURES) and log_failures + math.log(up_s) < math.log(horizon_s):
            return
        prompt = f", and its longest prompt takes {longest_s:.3g} s at least" if longest_s else ""
        raise InputError(
            "faults",
            f"with mtbf_s {self.mtbf_s:g} and repair_s {self.repair_s:g} the run would not end: a replica of {devices} "
            f"devices is up for {up_s:.3g} s at a time and {up_share:.3g} of the time{prompt}; raise mtbf_s, lower "
            "repair_s, or give run.max_time_s",
        )

    @property
    def any(self) -> bool:
        """Whether there are any faults at all."""
        return bool(self.events) or self.mtbf_s is not None


@dataclass(frozen=True, slots=True)
class Condition:
    """How a replica is. `slowdown`: thousandths of its normal step times."""

    replica: int
    up: bool = True
    takes_requests: bool = True
    slowdown: int = NORMAL
    fresh: bool = False  # a replica joins, of which nothing is cached


@dataclass(frozen=True, slots=True)
class Effect:
    """When a condition took effect: the time, the replica's next step, and tokens of KV cache that were lost."""

    replica: int
    at_fs: int
    step: int
    lost_tokens: int


@dataclass(slots=True)
class _Active:
    """Faults of a replica that have begun and not ended."""

    failed: int = 0
    left: int = 0
    slow: list[int] | None = None
    forever: bool = False  # it has failed or left, and never comes back


# (time fs, order among equals, begins, replica, device, kind, thousandths, lasts fs or None, how many the device had)
_Change = tuple[int, int, bool, int, int, str, int, int | None, int]


class Faults:
    """The faults of a run, in order of time.

    Args:
        spec: what there is.
        devices: of each replica.
        seed: of random failures.
        scalers: decide which replicas there are at all.

    Raises:
        InputError: a fault of a replica or device that there is not.
    """

    def __init__(self, spec: FaultSpec, devices: Sequence[int], seed: int, scalers: Sequence[PoolScaler] = ()) -> None:
        self.any = spec.any or bool(scalers)
        self.simulated = spec.any
        self.scalers = scalers
        self._detection_fs = round(spec.detection_s * FS_PER_S)
        self.requeued = 0
        self.lost_tokens = 0
        self.events: list[dict[str, Any]] = []
        self.slowdowns: list[tuple[int, int, int]] = []  # (replica, first step, thousandths)
        self._spec = spec
        self._seed = seed
        self._replicas = range(len(devices))
        away = {replica for scaler in scalers for replica in scaler.away}
        self._conditions = [Condition(replica, takes_requests=replica not in away) for replica in self._replicas]
        self._active = [_Active(left=int(replica in away)) for replica in self._replicas]
        self._begun: list[_Change] = []  # at the end of this window
        self._down: list[list[int]] = []  # (replica, since, until or -1), fs
        self._changes: list[_Change] = []
        for number, event in enumerate(spec.events):
            where = f"faults.events.{number}"
            if event.replica >= len(devices):
                raise InputError(f"{where}.replica", f"{event.replica}: there are {len(devices)}, from 0 up")
            if event.device >= devices[event.replica]:
                raise InputError(
                    f"{where}.device", f"{event.device}: a replica has {devices[event.replica]}, from 0 up"
                )
            lasts = None if event.for_s is None else round(event.for_s * FS_PER_S)
            slowdown = NORMAL if event.factor is None else round(event.factor * NORMAL)
            at = round(event.at_s * FS_PER_S)
            self._changes.append((at, number, True, event.replica, event.device, event.kind, slowdown, lasts, -1))
        heapify(self._changes)
        if spec.mtbf_s is not None:
            for replica, count in enumerate(devices):
                for device in range(count):
                    self._draw(0, replica, device, 0)

    @property
    def next_fs(self) -> int | None:
        """When something changes next, or is decided."""
        times = [*(scaler.next_fs for scaler in self.scalers), *(change[0] for change in self._changes[:1])]
        return min((at for at in times if at is not None), default=None)

    def decides_at(self, at_fs: int) -> bool:
        """Whether somebody decides then which replicas there are."""
        return any(scaler.next_fs == at_fs for scaler in self.scalers)

    @property
    def slo_metrics(self) -> list[SloMetric]:
        """What decisions go by that is of requests, not of replicas."""
        return [scaler.slo for scaler in self.scalers if scaler.slo is not None]

    def seen(self, now_fs: int, states: Sequence[ReplicaState]) -> None:
        """All replicas are in these states at that time: decide which there are, if it is time to."""
        for scaler in self.scalers:
            if scaler.next_fs == now_fs:
                lost = {replica for replica in scaler.numbers if self._active[replica].forever}
                for at, replica, leaves in scaler.decide(now_fs, states, lost):
                    starting = (change for change in self._changes if change[3] == replica and change[5] == _SCALED)
                    if leaves and (pending := next(starting, None)) is not None:
                        self._changes.remove(pending)  # it has not begun to take requests
                        heapify(self._changes)
                    else:
                        heappush(self._changes, (at, _SCALES, leaves, replica, 0, _SCALED, NORMAL, None, -1))

    @property
    def conditions(self) -> Sequence[Condition]:
        """How each replica is."""
        return self._conditions

    @property
    def away_for_good(self) -> set[int]:
        """Replicas that are not there, and no later decision can bring."""
        return {replica for scaler in self.scalers if scaler.next_fs is None for replica in scaler.away}

    def any_left(self, replicas: Sequence[int]) -> bool:
        """Whether any of these replicas takes requests, or will again."""
        away = self.away_for_good
        return any(not self._active[replica].forever and replica not in away for replica in replicas)

    def takers(self, replicas: Sequence[int]) -> Sequence[int]:
        """Those of these replicas that requests may be sent to."""
        return [replica for replica in replicas if self._conditions[replica].takes_requests] if self.any else replicas

    def requeue(self, move: Move) -> int:
        """Count a request that a replica lost; returns when it comes to the router again, of a failed one if missed."""
        self.requeued += 1
        return move.since_fs + (0 if self._conditions[move.replica].up else self._detection_fs)

    def due(self, by_fs: int) -> tuple[Condition, ...]:
        """Conditions of the replicas that change at that time; nothing may have changed before."""
        changed, joined = set(), set()
        while self._changes and self._changes[0][0] <= by_fs:
            change = heappop(self._changes)
            at, number, begins, replica, device, kind, slowdown, lasts, count = change
            self._apply(self._active[replica], kind, slowdown, begins=begins)
            changed.add(replica)
            if kind == _SCALED and not begins:
                joined.add(replica)
            if begins:
                self._active[replica].forever |= lasts is None and kind in ("fail", "leave")
                if kind != _SCALED:
                    self._begun.append(change)
                if lasts is not None:
                    heappush(self._changes, (at + lasts, number, False, replica, device, kind, slowdown, None, count))
            elif count >= 0:
                self._draw(at, replica, device, count + 1)
        conditions = []
        for replica in sorted(changed):
            active = self._active[replica]
            away = active.failed + active.left > 0
            up, slowdown = active.failed == 0, max(active.slow or [NORMAL])
            condition = Condition(replica, up, not away, slowdown, fresh=up and replica in joined)
            if condition != self._conditions[replica]:
                conditions.append(condition)
        return tuple(conditions)

    def took_effect(self, conditions: Sequence[Condition], effects: Sequence[Effect]) -> None:
        """The conditions of `due` hold from these times on."""
        effect_of = {effect.replica: effect for effect in effects}
        for condition in conditions:
            effect, before = effect_of[condition.replica], self._conditions[condition.replica]
            if before.up and not condition.up:
                self._down.append([condition.replica, effect.at_fs, -1])
            elif condition.up and not before.up:
                next(down for down in self._down if down[0] == condition.replica and down[2] < 0)[2] = effect.at_fs
            if before.slowdown != condition.slowdown:
                self.slowdowns.append((condition.replica, effect.step, condition.slowdown))
            self.lost_tokens += effect.lost_tokens
            self._conditions[condition.replica] = replace(condition, fresh=False)
        for at, _, _, replica, device, kind, slowdown, lasts, _ in self._begun:
            own = effect_of.get(replica)
            self.events.append(
                {
                    "at_s": at / FS_PER_S,
                    "replica": replica,
                    "device": device,
                    "kind": kind,
                    "for_s": None if lasts is None else lasts / FS_PER_S,
                    "factor": slowdown / NORMAL if kind == "slow" else None,
                    "took_effect_s": None if own is None else own.at_fs / FS_PER_S,
                    "step": None if own is None else own.step,
                }
            )
        self._begun = []

    def away_fs(self, replica: int, states: Sequence[ReplicaState], until_fs: int) -> int:
        """How long a replica was not there at all until then, as far as that was decided."""
        return sum(scaler.away_fs(replica, states, until_fs) for scaler in self.scalers if replica in scaler.numbers)

    def ledgers(
        self, of_shards: Sequence[Sequence[Ledger]], states: Sequence[ReplicaState], now_fs: int
    ) -> list[Ledger]:
        """All of these, without what devices would have drawn had their replicas been there all the time."""
        ledgers = [ledger for shard in of_shards for ledger in shard]
        return [self._without_away(ledger, states, now_fs) for ledger in ledgers] if self.scalers else ledgers

    def _without_away(self, ledger: Ledger, states: Sequence[ReplicaState], now_fs: int) -> Ledger:
        """Whoever reads it adds what is drawn from `clock_fs` until now; of one that is gone, nothing."""
        counted_fs, idle_w = -self.away_fs(ledger.replica, states, now_fs), ledger.idle_w
        if any(ledger.replica in scaler.away for scaler in self.scalers):
            counted_fs, idle_w = counted_fs + max(0, now_fs - ledger.clock_fs), 0.0
        drawn = ledger.passive_joules
        if drawn is not None:
            drawn += ledger.idle_w * counted_fs / FS_PER_S
        return replace(ledger, passive_joules=drawn, idle_w=idle_w)

    def down_fs(self, end_fs: int) -> int:
        """How long replicas were down until then, together."""
        return sum(max(0, (end_fs if until < 0 else min(until, end_fs)) - since) for _, since, until in self._down)

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "requeued": self.requeued,
            "lost_tokens": self.lost_tokens,
            "took_place": self.events,
            "slowdowns": self.slowdowns,
            "conditions": [asdict(condition) for condition in self._conditions],
            "active": [asdict(active) for active in self._active],
            "down": self._down,
            "changes": self._changes,
            "scalers": [scaler.state() for scaler in self.scalers],
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from `state`; None: there are none."""
        if state is None:
            return
        self.requeued, self.lost_tokens = state["requeued"], state["lost_tokens"]
        self.events = list(state["took_place"])
        self.slowdowns = [(replica, step, slowdown) for replica, step, slowdown in state["slowdowns"]]
        self._conditions = [Condition(**condition) for condition in state["conditions"]]
        self._active = [_Active(**active) for active in state["active"]]
        self._down = [list(down) for down in state["down"]]
        self._changes = [tuple(change) for change in state["changes"]]
        for scaler, scaler_state in zip(self.scalers, state["scalers"], strict=True):
            scaler.restore(scaler_state)

    def _apply(self, active: _Active, kind: str, slowdown: int, *, begins: bool) -> None:
        change = 1 if begins else -1
        if kind == "fail":
            active.failed += change
        elif kind in ("leave", _SCALED):
            active.left += change
        else:
            active.slow = active.slow or []
            if begins:
                active.slow.append(slowdown)
            else:
                active.slow.remove(slowdown)

    def _draw(self, after_fs: int, replica: int, device: int, count: int) -> None:
        """The next random failure of a device, which had `count` of them and works again from `after_fs` on."""
        assert self._spec.mtbf_s is not None
        assert self._spec.repair_s is not None
        rng = np.random.default_rng([self._seed, _FAULTS, replica, device, count])
        at = after_fs + round(rng.exponential(self._spec.mtbf_s) * FS_PER_S)
        number = _MANY + replica * 4096 * 4096 + device
        lasts = round(self._spec.repair_s * FS_PER_S)
        heappush(self._changes, (at, number, True, replica, device, "fail", NORMAL, lasts, count))
