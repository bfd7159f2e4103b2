"""The cost plan: what a step costs on one replica, as data.

A step is described by few numbers (`StepShape`). Operators that run one after the other add up; each takes the
maximum of affine functions of those numbers (a roofline). Units that work side by side take the maximum of both.

All times are integers in femtoseconds and all energies integers in picojoules. Integer sums do not depend on the
order or grouping of their terms, so a stretch of steps summed in closed form, step by step, in Python or in numpy,
here or on another machine, gives the same bits. (A femtosecond is fine enough: the smallest coefficients in the
catalogue are above 500 fs, most of them above 10,000.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.micro_batches import MicroBatches
from pimserve.device_models.operators import Category, RowKind, Runs, Stage
from pimserve.device_models.pipeline import Load, PassivePower, PipelineTerm
from pimserve.device_models.routed_link import RoutedLink
from pimserve.device_models.serial import SerialTiming, WayCosts
from pimserve.device_models.split_experts import SplitExperts
from pimserve.device_models.step import N, StepCosts, StepShape, StepTuple, least, most, row_counts

FS_PER_S = 10**15
FS_PER_PS = 1000
PJ_PER_J = 10**12
HOST = "host"  # the machine that the serving engine runs on, in busy tables where a plan has its time

Pieces = tuple[tuple[int, int], ...]


class Chunk(NamedTuple):
    """A piece of a prompt that one step computes: `tokens` new ones after `context` tokens computed before.

    A plain pair does as well; the engine makes one per prompt, and pairs are cheaper.
    """

    tokens: int
    context: int


ChunkShape = Chunk | tuple[int, int]


@dataclass(frozen=True, slots=True)
class Energy:
    """Affine energy of an operator, pJ: a constant per step and data-parallel group that has rows, a slope per row."""

    dram_const: int = 0
    dram_per_row: int = 0
    compute_per_row: int = 0


@dataclass(frozen=True, slots=True)
class RowTerm:
    """An operator whose cost depends on a number of rows only: FC layers, gates, collectives, launches, the host.

    `rows`: "tokens" of the step, "outputs" that it samples, "decodes" (requests that decode), "prompts" (chunks of
    prompts) or "requests" (both), of the busiest data-parallel group for time and of all groups for energy; of what
    they share, as experts of a layer that drafts, "all_tokens" and "all_decodes", of all groups for time, too. Time:
    max over `pieces` of const + slope x rows, fs; with `alternatives`, each of the same form, the least of all (a
    library takes the fastest algorithm for a size).
    """

    name: str
    category: Category
    unit: str
    rows: RowKind
    pieces: Pieces
    energy: Energy = Energy()
    alternatives: tuple[Pieces, ...] = ()
    runs: Runs = "layers"
    stage: Stage = "attention"

    def time_fs(self, rows: N) -> N:
        """Time for `rows` rows of one data-parallel group; nothing runs for none."""
        each = [most([const + slope * rows for const, slope in pieces]) for pieces in self.all_pieces]
        return least(each) * (rows > 0)

    @property
    def all_pieces(self) -> tuple[Pieces, ...]:
        """`pieces`, and those of the alternatives."""
        return self.pieces, *self.alternatives


@dataclass(frozen=True, slots=True)
class DecodeAttentionTerm:
    """Decode attention of layers with one window (None: all of the context).

    Time is `slope` fs per context token that is seen, summed over ALL requests of the replica: the data-parallel
    groups share them evenly, and the slope is already divided by their number; and `per_request` fs for each decoding
    request of the busiest group. Energies are in pJ per token seen.
    """

    unit: str
    window_tokens: int | None
    slope: int
    dram_per_token: int
    compute_per_token: int
    per_request: int = 0


@dataclass(frozen=True, slots=True)
class DecodeWay:
    """One way to run decode attention of all layers, beside prefill attention (`beside_prefill`) or after it."""

    terms: tuple[DecodeAttentionTerm, ...]
    beside_prefill: bool

    @property
    def costs(self) -> WayCosts:
        """What it takes, all layers together."""
        return WayCosts(
            sum(term.slope for term in self.terms if term.window_tokens is None),
            tuple((term.slope, term.window_tokens) for term in self.terms if term.window_tokens is not None),
            sum(term.per_request for term in self.terms),
            self.beside_prefill,
        )


@dataclass(frozen=True, slots=True)
class PrefillAttentionTerm:
    """Prefill attention of layers with one window (None: all of the context).

    Time of a chunk is the max over `pieces` of a x q + b x kv + c x pairs, where q is the chunk's length, kv the tokens
    whose cache entries it reads and pairs how many (query, key) pairs are computed: when `causal`, a query sees the
    tokens up to itself, else all of the chunk; in a window, no more than `window_tokens`. Energies are per q, kv, pair.
    """

    unit: str
    window_tokens: int | None
    causal: bool
    pieces: tuple[tuple[int, int, int], ...]
    dram: tuple[int, int, int]
    compute_per_pair: int

    def extent(self, chunk: ChunkShape) -> tuple[int, int, int]:
        """(q, kv, pairs) of a chunk."""
        q, context = chunk
        if (window := self.window_tokens) is None:
            return q, context + q, q * (context + q) - (q * (q - 1) // 2 if self.causal else 0)
        if not self.causal:
            pairs = q * min(context + q, window)
        else:
            growing = min(q, max(0, window - context))  # queries that still see everything before them
            pairs = growing * context + growing * (growing + 1) // 2 + (q - growing) * window
        return q, min(context, window) + q, pairs

    def cost(self, chunk: ChunkShape) -> tuple[int, int, int]:
        """(fs, dram pJ, compute pJ) of one chunk."""
        q, kv, pairs = self.extent(chunk)
        time = 0
        for a, b, c in self.pieces:
            time = max(time, a * q + b * kv + c * pairs)
        a, b, c = self.dram
        return time, a * q + b * kv + c * pairs, self.compute_per_pair * pairs


class StepTiming(Protocol):
    """Time that steps take beyond row terms and routed experts."""

    @property
    def links(self) -> tuple[str, ...]:
        """Links that are busy apart from units."""

    @property
    def loads(self) -> tuple[Load, ...]:
        """Busy time of units, in the mean over the devices; at least their parts of prefill attention."""

    @property
    def device_loads(self) -> tuple[Load, ...]:
        """Of those devices that may have most to do, where they are the same in all steps."""

    @property
    def rows_of_busiest(self) -> bool:
        """Whether row terms count the busiest tokens of a step; else all of its tokens."""

    def prefill(
        self, decodes: int, chunks: Sequence[ChunkShape], attention_fs: Sequence[int], verify_tokens: int = 1
    ) -> tuple[int, int, int]:
        """(busiest tokens, anchor tokens, prefill fs) of a step, as in `StepShape`; a chunk takes its attention fs."""

    def layers_fs(self, shape: StepTuple[N]) -> N:
        """Time of single steps, or of the first ones of spans."""

    def taken(self, shape: StepTuple[N]) -> list[N]:
        """By way of decode attention, 1 where it is taken and 0 elsewhere."""

    def decode_span(self, requests: int, context: int, steps: int) -> tuple[int, int, int]:
        """(time of the first of at most `steps` decode steps, growth per step, steps for which that holds)."""

    def costs(self, shape: StepShape[N]) -> StepCosts[N]:
        """What steps, or spans, take."""


@dataclass(frozen=True)
class CostPlan:
    """What steps cost on one replica: compiled once by its devices and links, evaluated everywhere.

    `units` names the units of a device (first the one that runs everything by default). `overlap_attention`: prefill
    attention and decode attention run side by side on two units. With `other_decode`, a step runs decode attention in
    the faster of two ways: that, or `decode`, which it takes where both are alike. With a `pipeline`, time comes from
    that, from prefill attention's, and from row terms that tokens do not pass one behind the other (the host); other
    terms then hold energies only. `passive` is power drawn on top; None where it is not known, or left out.
    `frontend_ps` passes between a client's sending a request and the scheduler's having it, beside the devices' work.
    With `micro_batches`, experts are on devices of their own, the last of the `devices`, and a step's batch goes round;
    `link` says how times of dispatch and combine among the `rows` follow from popularities of experts.
    `verify_tokens` of each decoding request pass through the layers in a step: its last one, and drafts of those that
    may follow (speculative decoding); terms of `decode` are for that many queries.
    """

    devices: int
    data_parallel: int
    units: tuple[str, ...]
    rows: tuple[RowTerm, ...]
    decode: tuple[DecodeAttentionTerm, ...]
    prefill: tuple[PrefillAttentionTerm, ...]
    # `RoutedExperts` of a known class, as plans are sent to processes
    experts: ExpertTerm | CrossbarExperts | SplitExperts | None
    overlap_attention: bool = False
    other_decode: DecodeWay | None = None
    pipeline: PipelineTerm | None = None
    passive: PassivePower | None = None
    frontend_ps: int = 0
    micro_batches: MicroBatches | None = None
    link: RoutedLink | None = None
    verify_tokens: int = 1
    version: Literal[5] = 5

    def digest(self) -> str:
        """sha256 over the plan's canonical JSON."""
        document = asdict(self)
        if self.verify_tokens == 1:  # a plan without drafts is what it was before there were any
            del document["verify_tokens"]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    @cached_property
    def timing(self) -> StepTiming:
        """How its layers take their time."""
        if self.pipeline is not None:
            return self.pipeline
        ways = [way.costs for way in self.decode_ways]
        return SerialTiming(self.data_parallel, ways, [term.unit for term in self.prefill[:1]])

    @property
    def engine_cores(self) -> int:
        """Data-parallel groups that have a queue, limits of steps and a KV cache of their own.

        One, that all share evenly, where experts have devices of their own: micro-batches are cut from the whole batch.
        """
        return self.data_parallel if self.micro_batches is None else 1

    @cached_property
    def rows_once(self) -> tuple[RowTerm, ...]:
        """With micro-batches, terms of what runs once for all of them, ahead: the host's work. Without, none."""
        return tuple(term for term in self.rows if self.micro_batches is not None and term.runs == "first")

    @cached_property
    def rows_of_parts(self) -> tuple[RowTerm, ...]:
        """All other row terms."""
        return tuple(term for term in self.rows if term not in self.rows_once)

    def tokens_of(self, shape: StepShape[N]) -> N:
        """Tokens that pass through the layers in a step, drafts with them."""
        return shape.tokens if self.verify_tokens == 1 else self.verify_tokens * shape.decodes + shape.prefill_tokens

    def sampled_of(self, shape: StepShape[N]) -> N:
        """Rows of a step that are multiplied with the vocabulary: of what it emits; to verify drafts, of each of them
        and of each prompt, whether it ends there or not, as in vLLM."""
        return self.sampled(shape.outputs, shape.decodes, shape.chunks)

    def sampled(self, outputs: N, decodes: N, prompts: N) -> N:
        """The same of a step that emits so many tokens, of decoding requests and prompts."""
        return outputs if self.verify_tokens == 1 else self.verify_tokens * decodes + prompts

    def chunk_cost(self, chunk: ChunkShape) -> tuple[int, int, int]:
        """(fs, dram pJ, compute pJ) of the attention of a chunk of a prompt."""
        time = dram = compute = 0
        for term in self.prefill:
            term_time, term_dram, term_compute = term.cost(chunk)
            time += term_time
            dram += term_dram
            compute += term_compute
        return time, dram, compute

    @cached_property
    def shared_rows(self) -> tuple[RowTerm, ...]:
        """Where there are several data-parallel groups, row terms whose time counts rows of all of them."""
        shared = [term for term in self.rows if term.rows in {"all_tokens", "all_decodes"}]
        return tuple(shared) if self.data_parallel > 1 else ()

    @cached_property
    def _rows_of_group(self) -> tuple[RowTerm, ...]:
        return tuple(term for term in self.rows if term not in self.shared_rows)

    def rows_fs(self, tokens: N, outputs: N, decodes: N, prompts: N) -> N:
        """Time of all row terms but `shared_rows` for these counts of the busiest data-parallel group."""
        counts = row_counts(tokens, outputs, decodes, prompts)
        return sum([term.time_fs(counts[term.rows]) for term in self._rows_of_group], 0 * tokens)

    def shared_rows_fs(self, tokens: N, decodes: N) -> N:
        """Time of `shared_rows` for these counts of all data-parallel groups."""
        counts = row_counts(tokens, 0 * tokens, decodes, 0 * tokens)
        return sum([term.time_fs(counts[term.rows]) for term in self.shared_rows], 0 * tokens)

    @cached_property
    def least_step_fs(self) -> int:
        """No step takes less: row terms that run in each, for a single row, as they take no less for more.

        With micro-batches, what runs once for all of them.
        """
        always = [term for term in self.rows if term.rows in {"tokens", "requests", "all_tokens"}]
        if self.micro_batches is not None:
            always = [term for term in self.rows_once if term in always]
        grow = [term for term in always if all(slope >= 0 for pieces in term.all_pieces for _, slope in pieces)]
        return sum([term.time_fs(1) for term in grow])

    @property
    def weight_stationary(self) -> bool:
        """Whether weights stay where they are, and tokens pass by them."""
        return self.pipeline is not None or (self.experts is not None and self.experts.weight_stationary)

    @property
    def decode_ways(self) -> tuple[DecodeWay, ...]:
        """The ways to run decode attention, one or two."""
        first = DecodeWay(self.decode, self.overlap_attention)
        return (first,) if self.other_decode is None else (first, self.other_decode)

    def most_step_pj(self, tokens: int, context: int) -> int:
        """A bound of the energy of a step of `tokens` tokens that attend to `context` tokens in all, without passive
        power."""
        parts = 1 if self.micro_batches is None else self.micro_batches.parts  # each reads the weights
        energy_pj = parts * self.experts.most_pj(-(-tokens // parts)) if self.experts is not None else 0
        for row in self.rows:
            energy_pj += parts * row.energy.dram_const * self.data_parallel
            energy_pj += (row.energy.dram_per_row + row.energy.compute_per_row) * tokens
        energy_pj += max(
            sum((term.dram_per_token + term.compute_per_token) * context for term in way.terms)
            for way in self.decode_ways
        )
        for term in self.prefill:
            per_q, per_kv, per_pair = term.dram
            energy_pj += per_q * tokens + per_kv * context + (per_pair + term.compute_per_pair) * tokens * context
        return energy_pj
