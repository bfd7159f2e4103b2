"""The reference that the engine is held against: one replica, every request on its own, one step at a time.

It is written to be read, not to be fast: each request keeps its own tokens and blocks, and every sum is taken afresh
in every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from pimserve.device_models.plan import Chunk, CostPlan, DecodeWay
from pimserve.device_models.routing import POOL_SIZE, ExpertPools
from tests.scheduler.reference_mixed import mixed_fs

FS_PER_PS = 1000
NEVER = -1
UNLIMITED = 10**12  # tokens; more than any step can hold


@dataclass
class ReferenceRequest:
    """A request as it comes in. In a closed loop nobody knows when it arrives, and `arrival_fs` is None."""

    arrival_fs: int | None
    input_tokens: int
    output_tokens: int


class ReferenceStep(NamedTuple):
    """One executed step."""

    start_fs: int
    duration_fs: int
    decode_requests: int
    context_tokens: int
    prefill_tokens: int
    chunks: int
    outputs: int
    blocks_used: int  # after the step's allocations


class ReferenceRow(NamedTuple):
    """What became of a request. Times in ps, -1 where it never happened."""

    arrival_ps: int
    first_scheduled_ps: int
    first_token_ps: int
    finish_ps: int
    input_tokens: int
    output_tokens: int  # capped; as asked for where the input alone is too long
    emitted_tokens: int
    preemptions: int
    replica: int
    status: str


@dataclass
class ReferenceResult:
    """A whole run. `itl` holds (time between two tokens of one request in fs, how many samples of it)."""

    steps: list[ReferenceStep] = field(default_factory=list)
    requests: list[ReferenceRow] = field(default_factory=list)
    itl: list[tuple[int, int]] = field(default_factory=list)


@dataclass(eq=False)
class _Request:
    """A request inside the engine."""

    arrival: int
    input: int
    output: int
    emitted: int = 0
    kv: int = 0  # tokens held
    prefill_len: int = 0  # tokens known at the latest admission
    blocks: int = 0
    preemptions: int = 0
    first_scheduled: int = NEVER
    first_token: int = NEVER
    last_token: int = NEVER
    finish: int = NEVER
    status: str = "unfinished"

    @property
    def decoding(self) -> bool:
        return self.kv >= self.prefill_len

    def row(self, replica: int) -> ReferenceRow:
        def ps(time: int) -> int:
            return NEVER if time == NEVER else time // FS_PER_PS

        return ReferenceRow(
            ps(self.arrival),
            ps(self.first_scheduled),
            ps(self.first_token),
            ps(self.finish),
            self.input,
            self.output,
            self.emitted,
            self.preemptions,
            replica,
            self.status,
        )


def run_reference(
    plan: CostPlan,
    pools: ExpertPools | None,
    *,
    mode: Literal["pooled", "exact"],
    seed: int,
    replica: int,
    offset: int,
    max_num_seqs: int,
    max_num_batched_tokens: int | None,
    block_size: int,
    kv_capacity_blocks: int,
    max_model_len: int,
    kv_admission: Literal["prompt", "oracle"],
    requests: Sequence[ReferenceRequest],
    concurrency: int | None,
    max_time_fs: int | None,
    full_groups: int = 1,
    windowed_groups: int = 0,
    window_tokens: int = 0,
) -> ReferenceResult:
    """Serve `requests` on one replica.

    `max_num_batched_tokens` None is stage batching; `concurrency` None is an open loop. `offset` is where this
    replica starts in the pools of expert outcomes. Groups of layers take blocks from one cache: full ones those of all
    tokens, windowed ones as many as the window may touch, wherever in a block it begins.
    """
    assert pools is None or pools.seed == seed
    longest_chunk = max_num_batched_tokens or UNLIMITED
    touched: dict[int, int] = {}

    def touches(tokens: int) -> int:
        if tokens >= UNLIMITED:
            return UNLIMITED
        if tokens not in touched:
            ways = [{(begin + token) // block_size for token in range(tokens)} for begin in range(block_size)]
            touched[tokens] = max(map(len, ways))
        return touched[tokens]

    def blocks_of(tokens: int, new: int = 1) -> int:
        blocks = -(-tokens // block_size)
        if not windowed_groups:
            return full_groups * blocks
        return full_groups * blocks + windowed_groups * min(blocks, touches(window_tokens - 1 + new))

    def most_blocks_of(request: _Request, computed: bool) -> int:
        later = blocks_of(request.input + request.output)
        if computed:
            return later
        of_full_groups = full_groups * -(-(request.input + request.output) // block_size)
        of_prompt = blocks_of(request.input, longest_chunk) - full_groups * -(-request.input // block_size)
        return max(later, of_full_groups + of_prompt)

    assert kv_admission == "oracle" or blocks_of(max_model_len, longest_chunk) <= kv_capacity_blocks

    def blocks_used() -> int:
        return sum(request.blocks for request in running)

    everyone = []
    for asked in requests:
        room = max_model_len - asked.input_tokens
        output = min(asked.output_tokens, room) if room >= 1 else asked.output_tokens
        arrival = NEVER if asked.arrival_fs is None else asked.arrival_fs
        everyone.append(_Request(arrival, asked.input_tokens, output))
    not_sent: list[_Request] = []  # closed loop: those that wait for another one to leave
    arriving: list[_Request] = []  # by index: their arrival is known, the engine has not seen them yet
    waiting: list[_Request] = []
    running: list[_Request] = []  # in order of admission
    result = ReferenceResult()
    now = 0

    def refused(request: _Request) -> bool:
        too_long = request.input + 1 > max_model_len
        most = most_blocks_of(request, computed=False)
        return too_long or (kv_admission == "oracle" and most > kv_capacity_blocks)

    def send_next(arrival: int) -> None:
        # In a closed loop the next one takes the place of a refused one.
        while not_sent:
            request = not_sent.pop(0)
            request.arrival = arrival
            if not refused(request):
                arriving.append(request)
                return
            request.status = "rejected"

    if concurrency is None:
        arriving = list(everyone)
    else:
        not_sent = list(everyone)
        for _ in range(concurrency):
            send_next(0)

    while True:
        # Arrivals: first come first.
        while due := [request for request in arriving if request.arrival <= now]:
            request = min(due, key=lambda one: one.arrival)  # of equals the first, and `arriving` is in order of index
            arriving.remove(request)
            if refused(request):
                request.status = "rejected"
            else:
                waiting.append(request)
        if max_time_fs is not None and now >= max_time_fs:
            break
        if not running and not waiting:
            if not arriving:
                break
            upcoming = min(request.arrival for request in arriving)
            if max_time_fs is not None and upcoming >= max_time_fs:
                break
            now = upcoming
            continue

        # 1. Growth: every decoding request stores one more token.
        preempted = False
        while True:
            decoding = [request for request in running if request.decoding]
            grown = sum(blocks_of(request.kv + 1) - request.blocks for request in decoding)
            if grown <= kv_capacity_blocks - blocks_used():
                break
            victim = running.pop()
            victim.blocks = victim.kv = 0
            victim.preemptions += 1
            waiting.insert(0, victim)
            preempted = True
        for request in decoding:
            request.blocks = blocks_of(request.kv + 1)

        # 2. The request that is in the middle of its prefill goes on.
        budget = UNLIMITED if max_num_batched_tokens is None else max_num_batched_tokens - len(decoding)
        chunks: list[tuple[_Request, Chunk]] = []
        for request in running:
            tokens = min(request.prefill_len - request.kv, budget)
            if not request.decoding and tokens > 0:
                chunks.append((request, Chunk(tokens, request.kv)))
                budget -= tokens

        # 3. Admission from the head of the queue; the first that does not fit holds up all behind it.
        while not preempted and waiting and len(running) < max_num_seqs and budget > 0:
            request = waiting[0]
            known = request.input + request.emitted
            if kv_admission == "oracle":
                reserved = sum(most_blocks_of(one, one.decoding) for one in running)
                fits = reserved + most_blocks_of(request, computed=False) <= kv_capacity_blocks
            else:
                fits = blocks_of(known, longest_chunk) <= kv_capacity_blocks - blocks_used()
            if not fits:
                break
            running.append(waiting.pop(0))
            request.prefill_len = known
            request.blocks = blocks_of(known, longest_chunk)
            if request.first_scheduled == NEVER:
                request.first_scheduled = now
            tokens = min(known, budget)
            chunks.append((request, Chunk(tokens, 0)))
            budget -= tokens
        assert decoding or chunks, "a step without work"

        # The step itself.
        context = sum(request.kv + 1 for request in decoding)
        completed = [request for request, chunk in chunks if request.kv + chunk.tokens == request.prefill_len]
        outputs = len(decoding) + len(completed)
        shape = [chunk for _, chunk in chunks]
        prefill_tokens = sum(chunk.tokens for chunk in shape)
        if plan.micro_batches is not None:
            assert pools is not None
            duration = mixed_fs(
                plan,
                pools.at(now),
                exact=mode == "exact",
                replica=replica,
                offset=offset,
                step=len(result.steps),
                decodes=len(decoding),
                context=context,
                chunks=shape,
                outputs=outputs,
                attention_fs=partial(fastest_attention_fs, plan),
            )
        else:
            duration = dense_fs(plan, len(decoding), context, shape, outputs)
        if pools is not None and plan.micro_batches is None:
            tokens, step = len(decoding) + prefill_tokens, len(result.steps)
            if mode == "exact":
                duration += int(pools.at(now).exact(tokens, replica, step)[0])
            else:
                index = (offset + step) % POOL_SIZE
                duration += int(pools.at(now).features(np.array([tokens]), np.array([index]))[0, 0])
        result.steps.append(
            ReferenceStep(now, duration, len(decoding), context, prefill_tokens, len(chunks), outputs, blocks_used())
        )
        now += duration

        # Its end.
        if decoding:
            result.itl.append((duration, len(decoding)))
        for request in completed:
            if request.last_token != NEVER:
                result.itl.append((now - request.last_token, 1))
        for request, chunk in chunks:
            request.kv += chunk.tokens
        for request in decoding:
            request.kv += 1
        for request in completed:
            request.blocks = blocks_of(request.kv)
        for request in [*decoding, *completed]:
            request.emitted += 1
            request.last_token = now
            if request.first_token == NEVER:
                request.first_token = now
            if request.emitted == request.output:
                request.finish = now
                request.status = "finished"
                running.remove(request)
                request.blocks = 0
                send_next((now // FS_PER_PS + plan.frontend_ps) * FS_PER_PS)

    result.requests = [request.row(replica) for request in everyone]
    return result


def dense_fs(plan: CostPlan, decode_requests: int, context: int, chunks: list[Chunk], outputs: int) -> int:
    """Duration of a step without its routed experts."""
    if plan.pipeline is not None:
        return pipeline_fs(plan, decode_requests, context, chunks, outputs)
    times = [sum(term.cost(chunk)[0] for term in plan.prefill) for chunk in chunks]
    tokens, _, prefill = plan.timing.prefill(decode_requests, chunks, times)
    attention = fastest_attention_fs(plan, decode_requests, context, prefill)
    return rows_fs(plan, decode_requests, len(chunks), outputs, tokens) + attention


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
        n = counts[term.rows]
        if n > 0:
            time += min(max(const + slope * n for const, slope in way) for way in [term.pieces, *term.alternatives])
    return time


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
