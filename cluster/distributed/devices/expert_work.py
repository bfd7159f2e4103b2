"""Routed experts on the devices of a replica: what each dispatches to the others, and what these make of it.

A device learns what its experts have to do from what the others send it, and from nothing else:

- with exact routing, for each step and layer the copies for each of its experts. Its group works out time and energy
  from their sums and sends them back; a layer takes as long as its slowest group (`exact_experts`);
- with pooled routing, where an outcome stands for all layers together, the tokens of each sender and the number of the
  outcome, which the receiver looks up in its own pools; it sends back the time.

Where experts have devices of their own, those of attention dispatch, in micro-batches, and results come back to them
(`mixed_experts`, with pooled routing).

What passes from device to device are matrices of whole numbers, a row for each span of steps. As every device knows
the gate's draw, it can say at once in which layer a message differs from it, and of whom it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.devices.flows import Dispatch
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.step import StepShape
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.exact import exact_sum
from pimserve.scheduler.ledger import PooledSpans

SENT, RESULT = np.dtype("<i4"), np.dtype("<i8")  # of the matrices that are dispatched, and come back
_EXPERTS_FS = FEATURES.index("time_fs")
Matrix = NDArray[Any]
Pair = tuple[int, int]  # sending and receiving device


class Work(NamedTuple):
    """What routed experts took in spans.

    `features`: (n, features), of the replica. `own_fs`: time that each device here had for its own experts; `own_pj`:
    its part of the DRAM and of the compute energy; empty where an outcome does not tell one device from another.
    """

    features: IntArray
    own_fs: Mapping[int, int]
    own_pj: Mapping[int, Pair]


def shared_evenly(totals: IntArray, place: int, parts: int) -> Pair:
    """What one of so many alike devices has of (n, 2) energies of steps, of all of them together.

    Each step is shared out by itself, so that it does not hang on which steps come together.
    """
    whole, rest = np.divmod(totals, parts)
    shares = whole + (place < rest)
    return exact_sum(shares[:, 0]), exact_sum(shares[:, 1])


class PooledExperts:
    """Experts of a replica with pooled routing.

    Args:
        costs: the replica's costs, at some speed.
        dispatch: what passes between its devices.
        devices: those that are on this host.
    """

    def __init__(self, costs: ReplicaCosts, dispatch: Dispatch, devices: Sequence[int]) -> None:
        self._spans = PooledSpans(costs)
        self._tokens_of = costs.plan.tokens_of
        self._senders = dispatch.senders
        self._devices = devices

    def sent_width(self, receiver: int) -> int:
        """Numbers that are dispatched to a device, in each row."""
        return 2

    def result_width(self, sender: int) -> int:
        """Numbers that come back from a device, in each row."""
        return 1

    def result_rows(self, span_steps: NDArray[np.integer[Any]]) -> int:
        """Rows of what comes back for spans of so many steps."""
        return len(span_steps)

    def senders(self, devices: Sequence[int]) -> list[int]:
        """Those of these devices that dispatch."""
        return list(devices)

    def receivers(self, devices: Sequence[int]) -> list[int]:
        """Of these devices, those to which something is sent; the others get the same as the one before."""
        return list(devices[:1])

    def layer_picks(self, sent: Mapping[Pair, Matrix], steps: IntArray) -> dict[Pair, IntArray]:
        """Nothing passes between groups of devices."""
        return {}

    def draw(self, spans: StepShape[IntArray], first_steps: IntArray) -> PooledTurn:
        """What the gate says to spans, (n,) each; `first_steps`: numbers of their first steps."""
        return PooledTurn(self._spans, self._senders, self._devices, self._tokens_of(spans), first_steps, spans.steps)


class PooledTurn:
    """Spans of which tokens are dispatched, looked up and sent back."""

    picks: IntArray | None = None

    def __init__(
        self,
        spans: PooledSpans,
        senders: int,
        devices: Sequence[int],
        tokens: IntArray,
        first_steps: IntArray,
        steps: IntArray,
    ) -> None:
        self._spans, self._devices = spans, devices
        self._tokens, self._steps = tokens, steps
        self._outcomes = spans.outcomes(first_steps)
        each = np.arange(senders)[:, None]
        tokens_of = tokens // senders + (each < tokens % senders)
        self._sent = np.stack([tokens_of, np.broadcast_to(self._outcomes, tokens_of.shape)], axis=2).astype(SENT)
        self._features: IntArray | None = None  # of what came

    def sent(self, sender: int, receiver: int) -> Matrix:
        """(n, 2): tokens of a sender, and the number of the outcome."""
        return np.asarray(self._sent[sender])

    def sent_name(self, receiver: int, column: int) -> str:
        """What a column of `sent` is."""
        return ("tokens in all layers", "number of the outcome of all layers")[column]

    def compute(self, came: Mapping[Pair, Matrix]) -> None:
        """Look up what came."""
        matrices = list(came.values())
        tokens = np.asarray(np.sum([matrix[:, 0] for matrix in matrices], axis=0, dtype=np.int64))
        self._features = self._spans.features(tokens, matrices[0][:, 1].astype(np.int64), self._steps)

    def result(self, sender: int) -> Matrix:
        """(n, 1): time of the experts of a span, fs."""
        return self._computed()[:, :1]

    def result_name(self, sender: int, column: int) -> str:
        """What a column of `result` is."""
        return "fs of the experts in all layers"

    def work(self, results: Mapping[int, Matrix]) -> Work:
        """What the replica's experts take: what the slowest device says."""
        features = self._computed().copy()
        features[:, _EXPERTS_FS] = np.max([matrix[:, 0] for matrix in results.values()], axis=0)
        return Work(features, dict.fromkeys(self._devices, exact_sum(features[:, _EXPERTS_FS])), {})

    def _computed(self) -> IntArray:
        if self._features is None:  # a span that was executed before
            self._features = self._spans.features(self._tokens, self._outcomes, self._steps)
        return self._features
