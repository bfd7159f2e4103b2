"""What summary.json says that working out a run's history hangs on, checked: others may have edited it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pimserve.errors import validation_error
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.fleet import DECODE, PREFILL

_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, le=2**63 / PS_PER_S, allow_inf_nan=False)]
_Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Requests(_Part):
    """Counts of requests."""

    total: _Count


class Batch(_Part):
    """What was computed together."""

    steps: _Count


class Kv(_Part):
    """The KV caches of all replicas."""

    capacity_tokens: _Count


class Window(_Part):
    """What was measured; all of the run, or what lies between a warm-up and a cool-down."""

    start_s: _Seconds
    end_s: _Seconds
    whole_run: bool


class Pool(_Part):
    """Replicas of one kind."""

    plan_digest: str


class Pools(_Part):
    """Both kinds of replicas."""

    prefill: Pool
    decode: Pool


class Spread(_Part):
    """What hosts did."""

    recoveries: _Count = 0
    audited_spans: _Count = 0


class Simulator(_Part):
    """Wall-clock figures."""

    loop_s: _Positive
    peak_memory_mb: _Positive
    spread: Spread = Spread()


class Fault(_Part):
    """A fault that took place; without `took_effect_s` it changed nothing when it began."""

    at_s: _Seconds
    replica: _Count
    kind: str
    for_s: _Seconds | None
    took_effect_s: _Seconds | None


class Slowdown(_Part):
    """From which step of a replica on steps take `factor` of their time."""

    replica: _Count
    first_step: _Count
    factor: Annotated[float, Field(ge=0.001, le=1000)]


class Faults(_Part):
    """What happened to replicas."""

    events: list[Fault] = []
    slowdowns: list[Slowdown] = []


class Account(_Part):
    """The summary as far as histories need it.

    Args:
        end_s: simulated seconds at the end.
        digest: of all steps and requests.
        plan_digest: of what steps cost, where all replicas are of one kind.
        pools: kinds of replicas, where there are two.
        requests: counts.
        batch: counts.
        kv: how large the caches were.
        window: what was measured.
        faults: what happened to replicas.
        simulator: wall-clock figures.
    """

    end_s: _Seconds
    digest: str
    plan_digest: str | None = None
    pools: Pools | None = None
    requests: Requests
    batch: Batch
    kv: Kv
    window: Window
    faults: Faults = Faults()
    simulator: Simulator

    def plan_digest_of(self, pool: str) -> str | None:
        """The plan's digest of a pool, by its name; of all replicas, where there are no pools."""
        if self.pools is None:
            return self.plan_digest
        return {PREFILL: self.pools.prefill, DECODE: self.pools.decode}.get(pool, self).plan_digest


def account_of(summary: Mapping[str, Any], file: Path) -> Account:
    """Check a summary.

    Args:
        summary: as read.
        file: where it was.

    Raises:
        InputError: something is missing, or of another kind than a run writes.
    """
    try:
        return Account.model_validate(summary)
    except ValidationError as error:
        raise validation_error(str(file), error, Account) from None
