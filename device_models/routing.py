"""Popularities of experts, and pools of whole-model outcomes that are drawn from the law of picks (`expert_picks`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.device_models.expert_layout import SlotCounts
from pimserve.device_models.expert_picks import draw_counts, expert_share, pick_probabilities
from pimserve.device_models.experts import RoutedExperts
from pimserve.device_models.memo import Memo
from pimserve.device_models.popularity_walk import Drift
from pimserve.device_models.rebalancing import layouts_by, moves_pj, placed_at

POOL_SIZE = 128  # outcomes per token count; a power of two
FINE_TOKENS = 32  # token counts up to this have a pool each; above, 2**OCTAVE_BITS per octave
OCTAVE_BITS = 3
_LAYER_DRAWS = 2**13  # layer draws x experts of one pool, where all layers of all outcomes would need more
_LEAST_DRAWS = 256
TABLES_KEPT = 512  # token counts of which the layers of all outcomes are kept
_LEAST_OF_LAYER = 32  # where each layer has a law of its own
_EPOCHS_KEPT = 16  # while popularities drift, of which pools are kept
_LAWS_KEPT = (
    8  # of which outcomes are kept for further runs in this process: 1.3 MB each, and 5-10 MB with times of layers
)
_NEVER_FS = 2**200
_POOL, _EXACT, _RANK, _POPULARITY, _ORDER = 1, 2, 3, 4, 5  # tags of random streams


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen.

    `popularity`: "uniform"; "zipf" with exponent `zipf_exponent`, ranks dealt to the experts by the seed (the same in
    all layers); or "given", a row of one weight per expert, for all MoE layers or for each. An expert of weight 0 is
    never picked. With `drift`, popularities are those at the beginning.
    `mode`: "pooled" picks pre-drawn whole-model outcomes, "exact" draws every layer of every step.
    """

    popularity: Literal["uniform", "zipf", "given"] = "uniform"
    zipf_exponent: float = 0.0
    weights: tuple[tuple[float, ...], ...] = field(default=())
    mode: Literal["pooled", "exact"] = "pooled"
    drift: Drift | None = None

    def expert_weights(self, experts: int, seed: int, epoch: int = 0) -> FloatArray:
        """(rows, experts): popularity weight of each expert, mean 1; one row for all MoE layers, or one for each.

        With `drift`, after so many of its intervals.
        """
        if self.popularity == "given":
            weights = np.asarray(self.weights, float)
        else:
            ranks = np.random.default_rng([seed, _POPULARITY]).permutation(experts)
            weights = ((ranks + 1.0) ** -self.zipf_exponent)[None]
        if self.drift is not None and epoch:
            weights = self.drift.weights(weights, seed, epoch)
        return np.asarray(weights / weights.mean(axis=1, keepdims=True))

    def expected_loads(self, experts: int, top_k: int, seed: int, epochs: range) -> FloatArray:
        """(rows, experts): how many of a token's picks fall on each expert, in the mean over intervals of the drift."""
        laws = [self.expert_weights(experts, seed, epoch).tolist() for epoch in epochs]
        return np.asarray(np.mean([[expert_share(row, top_k) for row in rows] for rows in laws], axis=0))

    def epochs(self, begin_ps: IntArray) -> IntArray:
        """(n,): in which interval of the drift steps begin; 0 where there is none."""
        return np.zeros_like(begin_ps) if self.drift is None else np.asarray(begin_ps // self.drift.interval_ps)


def pool_bucket(tokens: int) -> tuple[int, int]:
    """Token counts at or below, and at or above, `tokens` that have a pool: all up to 32, then 8 per octave."""
    if tokens <= FINE_TOKENS:
        return tokens, tokens
    step = 1 << (tokens.bit_length() - 1 - OCTAVE_BITS)
    low = tokens // step * step
    return (low, low) if low == tokens else (low, low + step)


class ExpertPools:
    """Whole-model MoE outcomes of one plan's experts, shared by all replicas that run the plan with one seed.

    A pool holds POOL_SIZE outcomes for one token count, sorted by time; outcome number i of every pool is the one of
    rank `rank[i]`, a fixed permutation. Between two pools' token counts, outcomes of equal rank are interpolated.

    Where popularities drift, these are outcomes of steps that begin in interval number `epoch`, before `ends_fs`.
    """

    def __init__(self, term: RoutedExperts, routing: Routing, seed: int, epoch: int = 0) -> None:
        self._first = term
        self.term = term = placed_at(term, routing, seed, epoch)
        self.seed = seed
        self.epoch = epoch
        self._routing = routing
        self._epochs: Memo[int, ExpertPools] = Memo(self._of_epoch, _EPOCHS_KEPT)
        self.ends_fs = _NEVER_FS if routing.drift is None else (epoch + 1) * routing.drift.interval_fs
        drawn = drawn_outcomes(term, routing, seed, epoch)
        self.rank = drawn.rank
        self.weights = drawn.weights
        self._probabilities = drawn.probabilities
        self._slots = drawn.slots
        self._pools = drawn.pools
        self._layer_pools = drawn.layer_pools
        self._layer_lists: Memo[int, list[list[int]]] = Memo(lambda tokens: self._layer_pools[tokens].T.tolist())
        # (POOL_SIZE, layers): the same by outcome
        self.layer_tables: Memo[int, IntArray] = Memo(lambda tokens: np.ascontiguousarray(self._layer_pools[tokens].T))
        self._pool_times: Memo[int, list[int]] = Memo(lambda tokens: self._pools[tokens][:, 0].tolist())
        self.prefixes_fs = Memo(self._prefix_fs)  # by token count
        self.layers_fs = Memo(self._layers_at, TABLES_KEPT)  # by token count, (layers, POOL_SIZE) each
        self._between = Memo(self._buckets)

    @property
    def layouts(self) -> int:
        """How many layouts of the experts have followed the first one."""
        return layouts_by(self._first, self.epoch)

    def moves_pj(self, layouts: int) -> int:
        """Energy that brought experts to where they are, since so many layouts had followed the first one."""
        return moves_pj(self._first, self._routing, self.seed, range(layouts + 1, self.layouts + 1))

    def at(self, fs: int) -> ExpertPools:
        """The outcomes of steps that begin at that time."""
        drift = self._routing.drift
        if drift is None or (epoch := fs // drift.interval_fs) == self.epoch:
            return self
        return self._epochs[epoch]

    def _of_epoch(self, epoch: int) -> ExpertPools:
        other = ExpertPools(self._first, self._routing, self.seed, epoch)
        other._epochs = self._epochs
        return other

    def features(self, tokens: IntArray, index: IntArray) -> IntArray:
        """(n, features): outcomes `index` (n,), each below POOL_SIZE, for token counts `tokens` (n,)."""
        begins = np.flatnonzero(
            np.diff(tokens, prepend=-1)
        )  # steps of a span have as many tokens: sort spans, not steps
        distinct, of_run = np.unique(tokens[begins], return_inverse=True)
        which = np.repeat(of_run, np.diff(begins, append=len(tokens)))
        bounds = np.array([pool_bucket(t) for t in distinct.tolist()]).reshape(-1, 2)
        buckets, place = np.unique(bounds, return_inverse=True)
        table = np.concatenate([self._pools[b] for b in buckets.tolist()])
        low, high = (place.reshape(-1, 2)[which, side] * POOL_SIZE + index for side in (0, 1))
        if (bounds[:, 0] == bounds[:, 1]).all():
            return np.asarray(table[low])
        above = (tokens - bounds[which, 0])[:, None]
        width = (bounds[which, 1] - bounds[which, 0])[:, None]
        # floor(difference x above / width) in two parts, as the product of a long prefill's time may exceed 64 bit
        whole, rest = np.divmod(table[high] - table[low], np.maximum(width, 1))
        return np.asarray(table[low] + whole * above + rest * above // np.maximum(width, 1))

    def time_fs(self, tokens: int, index: int) -> int:
        """Time of outcome `index` for `tokens` tokens."""
        at_low, low_weight, at_high, high_weight = self._between[tokens]
        if not high_weight:
            return at_low[index]
        return (at_low[index] * low_weight + at_high[index] * high_weight) // (low_weight + high_weight)

    def times_fs(self, tokens: int) -> list[int]:
        """Times of all outcomes for `tokens` tokens."""
        at_low, low_weight, at_high, high_weight = self._between[tokens]
        if not high_weight:
            return at_low
        width = low_weight + high_weight
        return [(low * low_weight + high * high_weight) // width for low, high in zip(at_low, at_high, strict=True)]

    def _prefix_fs(self, tokens: int) -> list[int]:
        """Summed time of the first i outcomes of the endless repetition of the pool, for i up to twice its size.

        Any stretch of at most one pool length is thus one subtraction.
        """
        return list(accumulate(self.times_fs(tokens) * 2, initial=0))

    def _buckets(self, tokens: int) -> tuple[list[int], int, list[int], int]:
        """(times in the pool below, its weight, times in the pool above, its weight) for `tokens` tokens."""
        low, high = pool_bucket(tokens)
        weights = (high - tokens, tokens - low) if high > low else (1, 0)
        return self._pool_times[low], weights[0], self._pool_times[high], weights[1]

    def exact(self, tokens: int, replica: int, step: int) -> IntArray:
        """(features,): one whole-model outcome drawn for this very step."""
        _check_range(self.term, tokens)
        return self.scaled(self.term.layer_features(self.exact_counts(tokens, replica, step)).sum(axis=0))

    def scaled(self, features: IntArray) -> IntArray:
        """(..., features) of whole steps, at the speed of these pools."""
        return features

    def exact_counts(self, tokens: int, replica: int, step: int, part: int = 0) -> IntArray:
        """(layers, slots): tokens of each expert, or of each of its copies, in that outcome, or in a micro-batch's."""
        rng = np.random.default_rng([self.seed, _EXACT, replica, step, *([part] if part else [])])
        counts = draw_counts(rng, self._probabilities, tokens, self.term.layers // len(self._probabilities))
        return self._slots.of(counts.reshape(-1, 1, self.term.experts))[:, 0]

    def exact_layers(self, tokens: Sequence[int], replica: int, steps: Sequence[int], part: int = 0) -> IntArray:
        """(n, layers, features): the same layer by layer, for a micro-batch of each of n steps."""
        _check_range(self.term, max(tokens))
        each = zip(tokens, steps, strict=True)
        counts = np.stack([self.exact_counts(t, replica, step, part) for t, step in each])
        features = self.term.layer_features(counts.reshape(-1, counts.shape[2]))
        return self.scaled(features.reshape(*counts.shape[:2], -1))

    def layers_of(self, tokens: IntArray, index: IntArray) -> IntArray:
        """(layers, n): time of each layer in outcomes `index` (n,) for token counts `tokens` (n,).

        Between two pools' token counts, layers of equal rank in their outcome are interpolated, where all have one law.
        """
        distinct, which = np.unique(tokens, return_inverse=True)
        bounds = np.array([pool_bucket(t) for t in distinct.tolist()])
        buckets, place = np.unique(bounds, return_inverse=True)
        table = np.concatenate([self._layer_pools[b] for b in buckets.tolist()], axis=1)
        low, high = (place.reshape(-1, 2)[which, side] * POOL_SIZE + index for side in (0, 1))
        times = table.take(low, axis=1)
        between = np.flatnonzero(low != high)
        if len(between):
            above, width = (tokens - bounds[which, 0])[between], (bounds[:, 1] - bounds[:, 0])[which[between]]
            whole, rest = np.divmod(table.take(high[between], axis=1) - times[:, between], width)  # as in `features`
            times[:, between] += whole * above + rest * above // width
        return np.asarray(times)

    def layer_times_fs(self, tokens: int, index: int) -> list[int]:
        """Time of each layer in outcome `index` for `tokens` tokens."""
        low, high = pool_bucket(tokens)
        at_low = self._layer_lists[low][index]
        if low == high:
            return at_low
        above, bits = tokens - low, (high - low).bit_length() - 1  # pools are powers of two apart
        both = zip(at_low, self._layer_lists[high][index], strict=True)
        return [lower + ((upper - lower) * above >> bits) for lower, upper in both]

    def _layers_at(self, tokens: int) -> IntArray:
        """(layers, POOL_SIZE): time of each layer in all outcomes for `tokens` tokens."""
        return self.layers_of(np.full(POOL_SIZE, tokens), np.arange(POOL_SIZE))


def _read_only(values: IntArray) -> IntArray:
    values.flags.writeable = False
    return values


def _check_range(term: RoutedExperts, tokens: int) -> None:
    if term.most_pj(tokens) >= 2**63:
        raise OverflowError(f"energies of {tokens} tokens exceed 64 bit")


class _DrawnOutcomes:
    """What pools are drawn as, for all runs in this process with the same experts, popularities and seed.

    `rank`: the outcome of each number, by time. `weights`: (rows, experts), popularities; `probabilities`: of picks,
    likewise. `pools` and `layer_pools`: by token counts that have a pool.
    """

    def __init__(self, term: RoutedExperts, routing: Routing, seed: int, epoch: int) -> None:
        self.term = term
        self.seed = seed
        self.rank: IntArray = np.random.default_rng([seed, _RANK]).permutation(POOL_SIZE)
        self.weights = routing.expert_weights(term.experts, seed, epoch)
        self.probabilities = np.stack([pick_probabilities(row, term.top_k) for row in self.weights])
        self.slots = SlotCounts(term.slots)
        self._drawn = Memo(self._draw, 2)
        self.pools = Memo(self._pool)
        self.layer_pools = Memo(self._layer_pool)

    def _pool(self, tokens: int) -> IntArray:
        """(POOL_SIZE, features): the pool of a token count that has one."""
        return _read_only(self._drawn[tokens].sum(axis=1)[self.rank])

    def _layer_pool(self, tokens: int) -> IntArray:
        """(layers, POOL_SIZE): times of that pool's layers; those of one law in an order that is the same in all."""
        self.pools[tokens]  # the log asks for it later on: it need not be drawn again
        laws, layers = len(self.probabilities), self.term.layers
        times = np.sort(self._drawn[tokens][self.rank, :, 0].reshape(POOL_SIZE, laws, -1), axis=2)
        order = np.random.default_rng([self.seed, _ORDER]).random(times.shape).argsort(axis=2)
        return _read_only(np.ascontiguousarray(np.take_along_axis(times, order, axis=2).reshape(POOL_SIZE, layers).T))

    def _draw(self, tokens: int) -> IntArray:
        """(POOL_SIZE, layers, features), by ascending time of all layers.

        Raises:
            OverflowError: energies do not fit 64 bit, in which numpy would go round without a word.
        """
        term = self.term
        _check_range(term, tokens)
        rng = np.random.default_rng([self.seed, _POOL, tokens])
        laws = max(len(self.probabilities), self.slots.rows)  # one for all layers, or one for each
        wanted = POOL_SIZE * term.layers // laws
        # The more tokens, the less their counts scatter, in relation: fewer draws then give the same precision.
        enough = max(_LEAST_DRAWS, _LAYER_DRAWS * 64 // (term.experts * max(64, tokens)))
        draws = min(wanted, max(_LEAST_OF_LAYER, enough // laws))
        probabilities = np.broadcast_to(self.probabilities, (laws, *self.probabilities.shape[1:]))
        counts = self.slots.of(draw_counts(rng, probabilities, tokens, draws))
        layer = term.layer_features(counts.reshape(-1, term.physical_experts)).reshape(laws, draws, -1)
        # Drawing every layer of every outcome costs too much for large models: layers are resampled from exact draws.
        chosen = layer if draws == wanted else layer[np.arange(laws)[:, None], rng.integers(draws, size=(laws, wanted))]
        outcomes = chosen.reshape(laws, POOL_SIZE, -1, len(term.features)).swapaxes(0, 1)
        order = np.argsort(outcomes[..., 0].sum(axis=(1, 2)), kind="stable")
        return np.asarray(outcomes[order].reshape(POOL_SIZE, term.layers, -1))


drawn_outcomes = lru_cache(_LAWS_KEPT)(_DrawnOutcomes)
