"""How a run is watched and changed while it goes: between two windows it shows itself, and takes commands.

A window is a stretch of simulated time. Where windows end is no part of the scenario and changes no bit of the result;
a command takes effect at the end of the window in which it came, and is part of what is simulated from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.routed_link import LinkKey
from pimserve.device_models.step import StageTime
from pimserve.errors import InputError, PimserveError
from pimserve.scheduler.clients import Clients
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.longest_gaps import LongestGaps
from pimserve.scheduler.prefix_figures import PrefixFigures
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.spec_decode_figures import SpecDecodeFigures
from pimserve.scheduler.tier_states import TiersState
from pimserve.scheduler.window import MeasuredWindow


class RunCancelledError(PimserveError):
    """Someone asked the run to stop; it leaves no results."""


@dataclass(frozen=True, slots=True)
class ChangeScheduler:
    """Settings of the scheduler for the rest of the run; None leaves one as it is."""

    router: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ScaleRate:
    """Requests that have not arrived yet come `factor` times as fast."""

    factor: float


@dataclass(frozen=True, slots=True)
class Inject:
    """More requests: each with its prompt and its output, tokens, all `delay_s` after the command takes effect.

    They have the numbers from `first_request` on; None: the next ones, as the command takes effect.
    """

    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    delay_s: float = 0.0
    first_request: int | None = None


Command = ChangeScheduler | ScaleRate | Inject
_COMMANDS: Mapping[str, type[Any]] = {
    "change_scheduler": ChangeScheduler,
    "scale_rate": ScaleRate,
    "inject": Inject,
}


def command_document(command: Command) -> dict[str, Any]:
    """A command as JSON can hold it."""
    name = next(name for name, kind in _COMMANDS.items() if isinstance(command, kind))
    return {"command": name, **asdict(command)}


def command_of(document: Mapping[str, Any]) -> Command:
    """The command of such a document."""
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in document.items() if key != "command"}
    try:
        command: Command = _COMMANDS[document["command"]](**values)
    except (KeyError, TypeError):
        raise InputError("command", f"must be one of {', '.join(_COMMANDS)}, with its own keys") from None
    return command


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica between two windows; `clock_fs` is when its next step begins."""

    replica: int
    pool: str  # "" where there is one pool
    up: bool
    clock_fs: int
    steps: int
    running: int
    waiting: int
    decoding: int
    context_tokens: int  # that the next step attends to
    kv_blocks_used: int
    kv_blocks: int
    left: int  # requests that were here and are gone: finished, rejected, handed over or moved
    outstanding: int  # requests routed here that have not left
    spare_kv_blocks: int  # neither in use nor needed by who waits after a handover; below 0 if they are short
    tokens_in_flight: int  # prompts and outputs of those outstanding, with those of the step under way
    kv_usage: float  # share of its KV blocks in use, until the step under way ends
    prefix_cache: PrefixFigures | None = None  # if it has one
    kv_tiers: TiersState | None = None  # below it, if there are any
    spec_decode: SpecDecodeFigures | None = None  # if it verifies drafts
    preemptions_by_cause: Mapping[str, int] = field(default_factory=dict)  # here so far, of causes that there were


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a replica has done so far.

    Args:
        replica: its number.
        steps: of its engine.
        spans: of like steps, in which it went through them.
        computed_tokens: that passed through the layers, of prompts and of outputs.
        prompt_tokens: of these, those of prompts.
        output_tokens: that requests got.
        sampled_rows: that were multiplied with the vocabulary, drafts with them.
        busy_s: of each unit, in the mean over the replica's devices.
        busiest_s: of each unit, on the device where it has most to do.
        operator_s: of each category of operators.
        joules: by category and part, dram or compute.
        passive_joules: what its devices have drawn until `clock_fs` whether they worked or not; None: not known.
        idle_w: what they draw from then on.
        clock_fs: the end of its last step.
        itl: time between tokens; not a copy, it grows with the next window.
        durations: of steps; likewise.
        longest: longest gaps between tokens of requests; likewise.
        step_tokens: steps by the tokens that they compute, (len(steplog.STEP_TOKENS) + 1,).
        step_s: time of steps.
        stage_s: of it, as in `StepCosts.stages`; empty unless experts have devices of their own.
        link_more: over the link to these, as in `StepLog.link_more`.
    """

    replica: int
    steps: int
    spans: int
    computed_tokens: int
    prompt_tokens: int
    output_tokens: int
    sampled_rows: int
    busy_s: Mapping[str, float]
    busiest_s: Mapping[str, float]
    operator_s: Mapping[str, float]
    joules: Mapping[tuple[str, str], float]
    passive_joules: float | None
    idle_w: float
    clock_fs: int
    itl: DurationHistogram
    durations: DurationHistogram
    longest: LongestGaps
    step_tokens: NDArray[np.int64]
    step_s: float
    stage_s: Mapping[StageTime, float]
    link_more: Mapping[LinkKey, float]


@dataclass(frozen=True, slots=True)
class RunView:
    """A run at the end of a window.

    Args:
        now_fs: the end of the window.
        window: how many windows have ended.
        arrived: requests that have arrived by now.
        table: all requests; those that run have what happened to them so far.
        left: numbers of the requests that finished or were rejected in this window.
        replicas: state of each.
        apply: lets a command take effect now; an InputError says why it cannot.
        ledgers: of each replica; costs milliseconds.
        measured: which requests latencies and the SLO are of.
        clients: who sends requests when others have been answered.
        decisions: of the router so far, by replica and reason, how many requests it sent there; it grows.
    """

    now_fs: int
    window: int
    arrived: int
    table: RequestTable
    left: NDArray[np.int64]
    replicas: Sequence[ReplicaState]
    apply: Callable[[Command], None]
    ledgers: Callable[[], list[Ledger]]
    measured: MeasuredWindow
    clients: Clients | None = None
    decisions: Mapping[tuple[int, str], int] = field(default_factory=dict)


class Control(Protocol):
    """Watches and changes a run."""

    def next_barrier_fs(self, now_fs: int) -> int:
        """Simulated time, after `now_fs`, at which it wants to see the run again at the latest."""

    def barrier(self, view: RunView) -> None:
        """See the run between two windows, and change it with `view.apply`. May take its time, which pauses the run.

        Raises:
            RunCancelledError: to end it.
        """

    def ended(self, view: RunView) -> None:
        """See the run when it has ended."""
