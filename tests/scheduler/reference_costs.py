"""What a step costs by its plan, term by term: the reference that the evaluator and the engine are held against."""

from collections.abc import Sequence
from dataclasses import replace

from pimserve.device_models.plan import Chunk, CostPlan, DecodeAttentionTerm, DecodeWay, RowTerm

SHARED = ("all_tokens", "all_decodes")


def dense_fs(plan: CostPlan, decode_requests: int, context: int, chunks: list[Chunk], outputs: int) -> int:
    """Duration of a step without its routed experts."""
    if plan.pipeline is not None:
        return pipeline_fs(plan, decode_requests, context, chunks, outputs)
    times = [sum(term.cost(chunk)[0] for term in plan.prefill) for chunk in chunks]
    tokens, _, prefill = plan.timing.prefill(plan.verify_tokens * decode_requests, chunks, times)
    attention = fastest_attention_fs(plan, decode_requests, context, prefill)
    return rows_fs(plan, decode_requests, len(chunks), outputs, tokens) + attention


def of_one_group(plan: CostPlan) -> CostPlan:
    """The plan of a data-parallel group by itself: a token of context costs it what it costs all groups, times all."""

    def alone(terms: Sequence[DecodeAttentionTerm]) -> tuple[DecodeAttentionTerm, ...]:
        return tuple(replace(term, slope=term.slope * plan.data_parallel) for term in terms)

    other = plan.other_decode
    other = other if other is None else replace(other, terms=alone(other.terms))
    return replace(plan, data_parallel=1, decode=alone(plan.decode), other_decode=other)


def fastest_attention_fs(plan: CostPlan, requests: int, context: int, prefill: int) -> int:
    """Time of attention in the fastest way."""
    return min(attention_fs(plan, way, requests, context, prefill) for way in plan.decode_ways)


def attention_fs(plan: CostPlan, way: DecodeWay, requests: int, context: int, prefill: int) -> int:
    """Time of decode attention in one way, beside or after `prefill` fs of prefill attention."""
    decode = 0
    for term in way.terms:
        seen = context if term.window_tokens is None else min(context, term.window_tokens * requests)
        decode += term.slope * seen + term.per_request * ((requests + plan.data_parallel - 1) // plan.data_parallel)
    return max(decode, prefill) if way.beside_prefill else decode + prefill


def rows_fs(plan: CostPlan, decodes: int, prompts: int, outputs: int, tokens: int) -> int:
    """Time of the row terms. `tokens` are the busiest group's; the others are of all groups, and spread evenly."""
    counts = {"tokens": tokens}
    for what, count in (("decodes", decodes), ("prompts", prompts), ("outputs", outputs)):
        counts[what] = (count + plan.data_parallel - 1) // plan.data_parallel
    counts["requests"] = counts["decodes"] + counts["prompts"]
    time = 0
    for term in plan.rows:
        if term.rows not in SHARED:
            time += term_fs(term, counts[term.rows])
    return time


def shared_fs(plan: CostPlan, tokens: int, decodes: int) -> int:
    """Time of those row terms that count tokens and decoding requests of all data-parallel groups."""
    counts = {"all_tokens": tokens, "all_decodes": decodes}
    return sum(term_fs(term, counts[term.rows]) for term in plan.rows if term.rows in SHARED)


def term_fs(term: RowTerm, rows: int) -> int:
    """Time of a row term for so many rows."""
    ways = [term.pieces, *term.alternatives]
    return min(max(const + slope * rows for const, slope in way) for way in ways) if rows > 0 else 0


def pipeline_fs(plan: CostPlan, requests: int, context: int, chunks: list[Chunk], outputs: int) -> int:
    """Duration of a step in a pipeline: the anchor's chain, and the busiest station's work for all other tokens.

    Before it, what row terms take that are no stations.
    """
    pipe = plan.pipeline
    assert pipe is not None
    time = rows_fs(plan, requests, len(chunks), outputs, requests + sum(chunk.tokens for chunk in chunks))
    time += sum(part for _, part in pipe.chain)
    attention = [sum(term.cost(chunk)[0] for term in plan.prefill) for chunk in chunks]
    own = [pipe.per_prompt_token * (chunk.tokens - 1) + spent for chunk, spent in zip(chunks, attention, strict=True)]
    if chunks:
        ranked = sorted(range(len(chunks)), key=lambda i: (own[i], chunks[i].tokens, attention[i]), reverse=True)
        others = 0
        busiest = max(station.per_token for station in pipe.stations)
        for rank, i in enumerate(ranked[1:]):
            tokens = chunks[i].tokens
            if rank == 0 and busiest:
                tokens = tokens * pipe.per_second_prompt_token // busiest
            others += tokens
        time += own[ranked[0]] + max(0, sum(attention[i] for i in ranked[1:]) - others * busiest)
        others += requests
    else:
        others = requests - 1
    seen = [context if window is None else min(context, window * requests) for window in pipe.windows]
    means = [0 if chunks else tokens // requests for tokens in seen]
    waits = []
    for station in pipe.stations:
        wait = station.per_token * others + station.per_request * (requests if chunks else requests - 1)
        wait += station.per_output * max(0, outputs - 1)
        wait += sum(a * (b - c) for a, b, c in zip(station.per_context, seen, means, strict=True))
        visit = station.visit + station.visit_per_context * means[0]
        if not chunks and (requests - 2) * visit <= station.rest:
            wait = max(wait - station.slack, (requests - 1) * visit)
        waits.append(wait)
    time += sum(a * b for a, b in zip(pipe.chain_per_context, means, strict=True))
    return time + max(waits)
