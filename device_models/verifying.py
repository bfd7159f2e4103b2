"""Steps that verify drafts of tokens (speculative decoding): wider decode attention, and what the drafts take.

A plan's decode attention reads each request's cache once for all of its new tokens, so that only FLOPs grow with them;
row terms and routed experts count these tokens as any others. Drafts are made one after the other, by a model with a
plan of its own, which becomes a part of the target's: its terms, so many times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pimserve.arrays import FloatArray
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import DecodeAttention, Operator, RowKind
from pimserve.device_models.plan import HOST, CostPlan, DecodeAttentionTerm, Energy, Pieces, RowTerm
from pimserve.device_models.routing import POOL_SIZE, ExpertPools

_PREFIX = "draft: "
_DECODES: dict[RowKind, RowKind] = {"tokens": "decodes", "all_tokens": "all_decodes"}  # of the same, who decodes


def verifying(operators: Sequence[Operator], verify_tokens: int) -> list[Operator]:
    """The operators of steps in which each decoding request has so many tokens: attention does more with what it
    reads."""
    return [replace(op, flops=verify_tokens * op.flops) if isinstance(op, DecodeAttention) else op for op in operators]


def mtp_layer(model: ModelSpec) -> ModelSpec:
    """A layer of multi-token prediction: as the model's last one, with its head (arXiv 2412.19437, section 2.2).

    What it has beside that, a projection of two vectors to one and two norms, is left out.
    """
    moe = None if model.moe is None else model.moe.model_copy(update={"first_layer": 0, "every": 1})
    ffn = model.ffn if moe is None else None
    return model.model_copy(
        update={"name": f"{model.name} mtp", "layers": 1, "moe": moe, "ffn": ffn, "published": None}
    )


def with_drafts(plan: CostPlan, draft: CostPlan, pools: ExpertPools | None, drafts: int, most_tokens: int) -> CostPlan:
    """The plan of a step in which a model with the plan `draft` makes so many drafts for each decoding request.

    As in vLLM, its first pass is over all tokens of the step, prompts with them, and fills its own KV cache; each
    further one is over the decoding requests. Each samples once for each of these. What the host does is the target's.

    Args:
        plan: of the target model.
        draft: of the model that drafts, on the same devices.
        pools: outcomes of its routed experts, of which the mean counts; None without any.
        drafts: passes.
        most_tokens: of the largest step, in all data-parallel groups.
    """
    rows = []
    terms = [*draft.rows, *([] if pools is None else _experts(draft, pools, most_tokens))]
    for term in terms:
        if term.unit == HOST:
            continue
        passes: list[tuple[RowKind, int]] = [(term.rows, 1)]
        if term.rows in _DECODES:
            passes.append((_DECODES[term.rows], drafts - 1))
        elif term.rows in {"outputs", "decodes"}:
            passes = [("decodes", drafts)]
        rows += [_times(term, kind, number) for kind, number in passes if number]
    return _with(plan, rows, draft.decode, drafts, prefill=draft)


def with_draft_share(
    plan: CostPlan, alone: CostPlan, pools: ExpertPools | None, drafts: float, most_tokens: int
) -> CostPlan:
    """The plan of a step in which drafts take, together, `drafts` times what one takes in which nothing is drafted.

    Args:
        plan: of steps that verify.
        alone: of the same model in steps without drafts.
        pools: outcomes of its routed experts, of which the mean counts; None without any.
        drafts: number of drafts x share of each.
        most_tokens: decoding requests of the largest step, in all data-parallel groups.
    """
    terms = [*alone.rows, *([] if pools is None else _experts(alone, pools, most_tokens))]
    rows = [_times(term, _DECODES.get(term.rows, "decodes"), drafts) for term in terms if term.rows != "prompts"]
    return _with(plan, rows, alone.decode, drafts, prefill=None)


def _with(
    plan: CostPlan,
    rows: Sequence[RowTerm],
    decode: Sequence[DecodeAttentionTerm],
    times: float,
    prefill: CostPlan | None,
) -> CostPlan:
    """The plan with these terms, decode attention so many times, and prefill attention of that plan."""
    attention = tuple(_attention(term, times) for term in decode)
    other = plan.other_decode
    return replace(
        plan,
        rows=(*plan.rows, *rows),
        decode=plan.decode + attention,
        other_decode=None if other is None else replace(other, terms=other.terms + attention),
        prefill=plan.prefill if prefill is None else plan.prefill + prefill.prefill,
    )


def _times(term: RowTerm, rows: RowKind, times: float) -> RowTerm:
    def scaled(pieces: Pieces) -> Pieces:
        return tuple((round(times * const), round(times * slope)) for const, slope in pieces)

    energy = term.energy
    return replace(
        term,
        name=_PREFIX + term.name,
        rows=rows,
        runs="last",  # after the pass that they go on from
        pieces=scaled(term.pieces),
        alternatives=tuple(map(scaled, term.alternatives)),
        energy=Energy(
            round(times * energy.dram_const), round(times * energy.dram_per_row), round(times * energy.compute_per_row)
        ),
    )


def _attention(term: DecodeAttentionTerm, times: float) -> DecodeAttentionTerm:
    return replace(
        term,
        slope=round(times * term.slope),
        dram_per_token=round(times * term.dram_per_token),
        compute_per_token=round(times * term.compute_per_token),
        per_request=round(times * term.per_request),
    )


def _experts(plan: CostPlan, pools: ExpertPools, most_tokens: int) -> list[RowTerm]:
    """Routed experts in the mean over outcomes, as a term that counts tokens, those of all data-parallel groups: their
    time through its values at powers of two, on the unit that is busiest; energy as of a step that touches all experts.
    """
    assert plan.experts is not None
    knots = [2**power for power in range(max(2, most_tokens.bit_length() + 1))]
    means = np.array(
        [pools.features(np.full(POOL_SIZE, knot), np.arange(POOL_SIZE)).mean(axis=0) for knot in knots], float
    )
    features = dict(zip(FEATURES, means.T, strict=True))
    ways = _ways(np.array(knots, float), features["time_fs"])
    second = len(plan.experts.units) > 1 and features["second_busy_fs"].sum() > features["first_busy_fs"].sum()
    (dram_const, dram), (_, compute) = (_line(knots[-2:], features[name][-2:]) for name in ("dram_pj", "compute_pj"))
    return [
        RowTerm(
            "routed experts",
            "moe",
            plan.experts.units[1 if second else 0].unit,
            "tokens" if plan.data_parallel == 1 else "all_tokens",
            ways[0],
            Energy(dram_const, dram, compute),
            alternatives=tuple(ways[1:]),
        )
    ]


def _ways(knots: FloatArray, times: FloatArray) -> list[Pieces]:
    """A time that first grows ever slower (tokens share experts) and then ever faster (a matrix product becomes bound
    by compute), as the least of ways, each the most of lines."""
    slopes = np.diff(times) / np.diff(knots)
    turn = int(slopes.argmin())
    lines = [_line(knots[at : at + 2], times[at : at + 2]) for at in range(len(slopes))]
    return [(line, *lines[turn + 1 :]) for line in lines[: turn + 1]]


def _line(knots: Sequence[float] | FloatArray, values: FloatArray) -> tuple[int, int]:
    """(const, slope) of the line through two points."""
    slope = (values[1] - values[0]) / (knots[1] - knots[0])
    return round(values[0] - slope * knots[0]), round(slope)
