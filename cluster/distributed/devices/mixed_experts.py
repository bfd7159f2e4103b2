"""Routed experts on devices of their own, with pooled routing: what attention's dispatch to them, and what they answer.

Of each micro-batch of a step, attention's devices send their tokens and the number of its outcome. The experts' devices
look up how long each layer takes, and the load and energy of all, and send that back for each step. From these times
follows the step's, by the schedule of the micro-batches. Where hot experts are on devices of another kind, these and
the cold ones' look up the same: an outcome is of both, and says what each kind takes in all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.devices.expert_work import RESULT, SENT, Matrix, Pair, Work, shared_evenly
from pimserve.cluster.distributed.devices.flows import Dispatch, apportion
from pimserve.device_models.evaluate import parts_of
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.routing import POOL_SIZE
from pimserve.device_models.step import StepShape, each_step
from pimserve.scheduler.exact import exact_dot, exact_sum
from pimserve.scheduler.mixed_costs import MixedCosts

_TIME, _DRAM, _COMPUTE = (FEATURES.index(name) for name in ("time_fs", "dram_pj", "compute_pj"))


class MixedExperts:
    """Experts of a replica with micro-batches.

    Args:
        costs: the replica's costs, at some speed.
        dispatch: what passes between its devices.
        devices: those that are on this host.
    """

    def __init__(self, costs: MixedCosts, dispatch: Dispatch, devices: Sequence[int]) -> None:
        assert costs.plan.micro_batches is not None
        assert costs.pools is not None
        self.costs = costs
        self.pools = costs.pools
        self.dispatch = dispatch
        self.devices = devices
        self.parts = costs.plan.micro_batches.parts
        self.layers = self.pools.term.layers
        self.features = self.pools.term.features

    def sent_width(self, receiver: int) -> int:
        """Numbers that are dispatched to a device, in each row."""
        return 2 * self.parts

    def result_width(self, sender: int) -> int:
        """Numbers that come back from a device, in each row: times of layers, and all features but that of time."""
        return self.parts * self.layers + len(self.features) - 1

    def result_rows(self, span_steps: NDArray[np.integer[Any]]) -> int:
        """Rows of what comes back for spans of so many steps."""
        return int(span_steps.sum())

    def senders(self, devices: Sequence[int]) -> list[int]:
        """Those of these devices that dispatch."""
        return self.dispatch.of_senders(devices)

    def receivers(self, devices: Sequence[int]) -> list[int]:
        """Of these devices, those to which something is sent: the first of each kind, as the others get the same."""
        return [device for each in self.dispatch.holders for device in each.of(devices)[:1]]

    def layer_picks(self, sent: Mapping[Pair, Matrix], steps: IntArray) -> dict[Pair, IntArray]:
        """Picks by MoE layer, (layers,), of tokens that were dispatched to the first device of each kind in spans of
        these steps: of hot and of cold experts as many as each get in the mean over layers and outcomes."""
        found, holders = {}, self.dispatch.holders
        weights = self.dispatch.weights_of_holders()
        for (sender, receiver), matrix in sent.items():
            tokens = matrix[:, ::2].sum(axis=1, dtype=np.int64)
            for number, each in enumerate(holders):
                if receiver == each.first:
                    picks = apportion(tokens * self.pools.term.top_k, weights)[:, number]
                    found[sender, receiver] = np.full(self.layers, exact_dot(picks, steps))
        return found

    def draw(self, spans: StepShape[IntArray], first_steps: IntArray) -> MixedTurn:
        """What the gate says to spans, (n,) each; `first_steps`: numbers of their first steps."""
        return MixedTurn(self, spans, first_steps)


class MixedTurn:
    """Spans of which tokens are dispatched, looked up and sent back."""

    picks: IntArray | None = None

    def __init__(self, experts: MixedExperts, spans: StepShape[IntArray], first_steps: IntArray) -> None:
        self._experts = experts
        self._spans = spans
        costs, senders = experts.costs, experts.dispatch.senders
        self._tokens = np.stack([costs.plan.tokens_of(part) for part in parts_of(costs.plan, spans)], axis=1)
        self._outcomes = np.stack([costs.outcomes(first_steps, part) for part in range(experts.parts)], axis=1)
        each = np.arange(senders)[:, None, None]
        tokens_of = self._tokens // senders + (each < self._tokens % senders)
        sent = np.stack([tokens_of, np.broadcast_to(self._outcomes, tokens_of.shape)], axis=3)
        self._sent = sent.reshape(senders, len(first_steps), -1).astype(SENT)
        self._answer: Matrix | None = None  # to what came

    def sent(self, sender: int, receiver: int) -> Matrix:
        """(n, 2 micro-batches): of each, tokens of a sender, and the number of the outcome in the first step."""
        return np.asarray(self._sent[sender])

    def sent_name(self, receiver: int, column: int) -> str:
        """What a column of `sent` is."""
        part, which = divmod(column, 2)
        return f"{('tokens', 'number of the outcome')[which]} of micro-batch {part} in all layers"

    def compute(self, came: Mapping[Pair, Matrix]) -> None:
        """Look up what came, where experts are here."""
        if not came:
            return
        first = min(receiver for _, receiver in came)  # others here get the same
        mine = (matrix for (_, receiver), matrix in came.items() if receiver == first)
        shaped = [matrix.reshape(*self._tokens.shape, 2).astype(np.int64) for matrix in mine]
        tokens = np.asarray(np.sum([matrix[:, :, 0] for matrix in shaped], axis=0))
        self._answer = self._looked_up(tokens, shaped[0][:, :, 1])

    def result(self, sender: int) -> Matrix:
        """(steps, micro-batches x layers + features): times of the layers, and what beside time all take together."""
        if self._answer is None:  # of attention's devices, or of a span that was executed before
            self._answer = self._looked_up(self._tokens, self._outcomes)
        return self._answer

    def result_name(self, sender: int, column: int) -> str:
        """What a column of `result` is."""
        part, layer = divmod(column, self._experts.layers)
        if (beside := column - self._experts.parts * self._experts.layers) >= 0:
            return f"{self._experts.features[1 + beside]} of the experts in all layers"
        return f"fs of the experts in MoE layer {layer}, micro-batch {part}"

    def work(self, results: Mapping[int, Matrix]) -> Work:
        """What the replica's experts take: what the slowest device says; where nothing comes back, what is here."""
        experts, spans = self._experts, self._spans
        answer = np.max([*results.values()], axis=0) if results else self.result(experts.dispatch.holders[0].first)
        times = answer[:, : experts.parts * experts.layers]
        routed = times.reshape(-1, experts.parts, experts.layers).transpose(1, 2, 0)
        drawn = np.zeros((len(answer), len(experts.features)), np.int64)
        drawn[:, 1:] = answer[:, times.shape[1] :]
        features = experts.costs.features_of(each_step(spans), list(routed), drawn)
        drawn[:, _TIME] = times.sum(axis=1)
        return Work(np.add.reduceat(features, np.cumsum(spans.steps) - spans.steps), *self._own(drawn))

    def _own(self, drawn: IntArray) -> tuple[dict[int, int], dict[int, Pair]]:
        """(time, energies) that devices here have for their own experts, given (steps, features) of all of them."""
        experts, holders = self._experts, self._experts.dispatch.holders
        columns = dict(zip(experts.features, drawn.T, strict=True))
        taken: list[tuple[IntArray, IntArray | None]] = [(columns["time_fs"], None)]  # by kind of devices
        if len(holders) > 1:
            hot = np.column_stack([columns["hot_dram_pj"], columns["hot_compute_pj"]])
            taken = [(columns["hot_fs"], hot), (columns["cold_fs"], drawn[:, [_DRAM, _COMPUTE]] - hot)]
        own_fs, own_pj = dict.fromkeys(experts.devices, 0), {}
        for each, (times, energies) in zip(holders, taken, strict=True):
            for device in each.of(experts.devices):
                own_fs[device] = exact_sum(times)
                if energies is not None:
                    own_pj[device] = shared_evenly(energies, device - each.first, each.devices)
        return own_fs, own_pj

    def _looked_up(self, tokens: IntArray, outcomes: IntArray) -> Matrix:
        """The answer to (n, micro-batches) tokens and outcomes."""
        experts, steps, blocks = self._experts, self._spans.steps, []
        after = np.arange(int(steps.sum())) - np.repeat(np.cumsum(steps) - steps, steps)
        features = np.zeros((len(after), len(experts.features)), np.int64)
        for part in range(experts.parts):
            of_steps = np.repeat(tokens[:, part], steps)
            outcome = (np.repeat(outcomes[:, part], steps) + after * experts.parts) % POOL_SIZE
            blocks.append(experts.costs.layers_of(of_steps, outcome).T)
            features += experts.pools.features(of_steps, outcome)
        return np.column_stack([*blocks, features[:, 1:]]).astype(RESULT)
