"""The reference for replicas whose experts are on devices of their own: each micro-batch and each layer on its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from math import floor

import numpy as np

from pimserve.device_models.plan import Chunk, CostPlan, RowTerm
from pimserve.device_models.routing import POOL_SIZE, ExpertPools
from tests.device_models.naive_schedule import naive_schedule


def dealt(things: int, parts: int) -> list[int]:
    """How many each part gets of things that are dealt out one by one, like cards."""
    hands = [0] * parts
    for thing in range(things):
        hands[thing % parts] += 1
    return hands


def mixed_fs(
    plan: CostPlan,
    pools: ExpertPools,
    *,
    exact: bool,
    replica: int,
    offset: int,
    step: int,
    decodes: int,
    context: int,
    chunks: list[Chunk],
    outputs: int,
    attention_fs: Callable[[int, int, int], int],
) -> int:
    """Duration of a step; `attention_fs` gives that of attention for (requests, context, prefill fs)."""
    micro, groups, rows = plan.micro_batches, plan.data_parallel, rows_at(plan, pools)
    assert micro is not None
    width = plan.verify_tokens
    whole_tokens = width * decodes + sum(chunk.tokens for chunk in chunks)
    most, m = micro.parts, [number for tokens, number in micro.cuts if tokens <= whole_tokens][-1]
    layers, dense_layers, moe_layers = micro.counts
    times = [sum(term.cost(chunk)[0] for term in plan.prefill) for chunk in chunks]
    prompts_of_busiest, _, prefill = plan.timing.prefill(0, chunks, times)
    beside = dealt(prompts_of_busiest, m)[::-1]
    requests, prompts, completed = dealt(decodes, m), dealt(len(chunks), m)[::-1], dealt(outputs - decodes, m)[::-1]
    more = completed if width == 1 else prompts  # to verify drafts, each prompt has a row, whether it ends or not
    sampled = [width * request + one for request, one in zip(requests, more, strict=True)]
    prompt_tokens = dealt(sum(chunk.tokens for chunk in chunks), m)[::-1]
    sharing = sum(tokens > 0 for tokens in prompt_tokens)
    whole, rest = divmod(prefill // layers, sharing or 1)  # too many femtoseconds to deal out one by one
    prefill_share = [layers * (whole + (part < rest)) if part < sharing else 0 for part in range(m)][::-1]
    mean, more = divmod(context, decodes) if decodes else (0, 0)
    one_more = dealt(more, m)
    stations: dict[str, list[list[int]]] = {"attention": [], "dispatch": [], "experts": [], "combine": []}
    last = []
    for part in range(m):
        spread = (requests[part] + groups - 1) // groups
        of_busiest = {
            "tokens": width * spread + beside[part],
            "outputs": (sampled[part] + groups - 1) // groups,
            "decodes": spread,
            "prompts": (prompts[part] + groups - 1) // groups,
        }
        tokens = width * requests[part] + prompt_tokens[part]
        of_all = {
            "tokens": tokens,
            "outputs": sampled[part],
            "decodes": requests[part],
            "prompts": prompts[part],
        }
        for counts in (of_busiest, of_all):
            counts["requests"] = counts["decodes"] + counts["prompts"]
            counts["all_tokens"], counts["all_decodes"] = tokens, requests[part]

        @cache  # every layer of a kind asks
        def once(stage: str, runs: str, of_busiest=of_busiest, of_all=of_all) -> int:
            """Of row terms, in one layer of that kind."""
            repeats = {"layers": layers, "dense_layers": dense_layers, "moe_layers": moe_layers}.get(runs, 1)
            time = 0
            for term in rows:
                n = (of_busiest if stage == "attention" else of_all)[term.rows]
                if (term.stage, term.runs) == (stage, runs) and n > 0:
                    time += min(max(a + b * n for a, b in way) for way in [term.pieces, *term.alternatives])
            assert time % repeats == 0
            return time // repeats

        attention = attention_fs(requests[part], mean * requests[part] + one_more[part], prefill_share[part])
        assert attention % layers == 0
        routed = iter(_routed(pools, exact, replica, offset, step, part, most, tokens))
        columns: dict[str, list[int]] = {name: [] for name in stations}
        for visit in micro.visits:
            here = visit.layers * (attention // layers + once("attention", "layers"))
            here += visit.dense_layers * once("attention", "dense_layers") if visit.dense_layers else 0
            here += once("attention", "moe_layers") if visit.moe_layers else 0
            columns["attention"].append(here)
            columns["dispatch"].append(once("dispatch", visit.calls))
            there = once("experts", visit.calls)
            columns["experts"].append(there + next(routed) if visit.calls == "moe_layers" else there)
            columns["combine"].append(once("combine", visit.calls))
        for name, column in columns.items():
            stations[name].append(column)
        closing = micro.closing[0] * (attention // layers + once("attention", "layers"))
        closing += micro.closing[1] * once("attention", "dense_layers") if micro.closing[1] else 0
        last.append(closing + once("attention", "last"))
    filled = [part for part in range(m) if requests[part] + prompt_tokens[part] > 0]
    matrices = [np.array(stations[name])[filled].T for name in ("attention", "dispatch", "experts", "combine")]
    spread, sampled_in_all = (decodes + groups - 1) // groups, outputs if width == 1 else sum(sampled)
    tokens_ahead = width * spread + prompts_of_busiest, whole_tokens
    ahead = ahead_fs(plan, decodes, tokens_ahead, len(chunks), sampled_in_all)
    return ahead + naive_schedule(*matrices, np.array(last)[filled])


def rows_at(plan: CostPlan, pools: ExpertPools) -> list[RowTerm]:
    """Row terms of the plan, of which those of the link are what popularities and places of experts now make them."""
    if plan.link is None:
        return list(plan.rows)
    link, rows = plan.link.at(pools.weights.tolist(), pools.term.slots), []
    for term in plan.rows:
        if term.runs == "moe_layers" and term.stage in {"dispatch", "combine"}:
            each = [Fraction(time, link.layers) for time in link.time_fs(term.stage)]
            const, slope = (link.layers * floor(time + Fraction(1, 2)) for time in each)
            rows.append(replace(term, pieces=((const, slope),)))
        else:
            rows.append(term)
    return rows


def ahead_fs(plan: CostPlan, decodes: int, tokens: tuple[int, int], prompts: int, outputs: int) -> int:
    """What runs once for all micro-batches, before them; `tokens`: of the busiest group, and of all."""
    groups = plan.data_parallel
    counts = {
        "tokens": tokens[0],
        "all_tokens": tokens[1],
        "all_decodes": decodes,
        "outputs": (outputs + groups - 1) // groups,
        "decodes": (decodes + groups - 1) // groups,
        "prompts": (prompts + groups - 1) // groups,
    }
    counts["requests"] = counts["decodes"] + counts["prompts"]
    time = 0
    for term in plan.rows:
        n = counts[term.rows]
        if term.runs == "first" and n > 0:
            time += min(max(a + b * n for a, b in way) for way in [term.pieces, *term.alternatives])
    return time


def _routed(
    pools: ExpertPools, exact: bool, replica: int, offset: int, step: int, part: int, m: int, tokens: int
) -> Sequence[int]:
    """Time of routed experts in each MoE layer."""
    if exact:
        counts = pools.exact_counts(tokens, replica, step, part)
        return pools.term.layer_features(counts)[:, 0].tolist()
    return pools.layers_fs[tokens][:, (offset + step * m + part) % POOL_SIZE].tolist()
