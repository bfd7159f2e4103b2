"""The reference that the engine is held against: one replica, every request on its own, one step at a time.

Its data-parallel groups each have their own requests and blocks; with experts on other devices they share them evenly.

It is written to be read, not to be fast: each request keeps its own tokens and blocks, and every sum is taken afresh
in every step.
"""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from types import MappingProxyType
from typing import Literal

from pimserve.device_models.plan import Chunk, CostPlan
from pimserve.device_models.routing import ExpertPools
from pimserve.scheduler.speculative_spec import SpeculativeSpec
from tests.scheduler.reference_balance import ReferenceBalance, least_loaded
from tests.scheduler.reference_blocks import UNLIMITED, ReferenceBlocks
from tests.scheduler.reference_fair_share import ReferenceShares
from tests.scheduler.reference_order import ReferenceOrder
from tests.scheduler.reference_prefix import PhysicalBlocks
from tests.scheduler.reference_request import FS_PER_PS, NEVER, ReferenceRequest, ServedRequest, served_requests
from tests.scheduler.reference_result import ReferenceResult, ReferenceStep
from tests.scheduler.reference_shedding import ReferenceShedding
from tests.scheduler.reference_speculative import ReferenceDrafts
from tests.scheduler.reference_step import ReferenceCosts
from tests.scheduler.reference_swap import ReferenceSwap
from tests.scheduler.reference_tiers import ReferenceTier


def reference_events(
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
    kv_admission: Literal["prompt", "no_evict", "oracle"],
    requests: Sequence[ReferenceRequest],
    concurrency: int | None,
    max_time_fs: int | None,
    full_groups: int = 1,
    windowed_groups: int = 0,
    window_tokens: int = 0,
    policy: str = "fcfs",
    predicted: Sequence[int] = (),
    priorities: Sequence[int] = (),
    limits_ps: Sequence[int | None] = (),
    ageing_ps: int | None = None,
    tenants: Sequence[str] = (),
    token_weights: tuple[int, int] = (1, 2),
    tenant_weights: Mapping[str, int] = MappingProxyType({}),
    long_prefill_token_threshold: int = 0,
    prefixes: Sequence[Sequence[int]] | None = None,
    retention: int | None = None,
    max_tokens: Sequence[int] = (),
    speculative: SpeculativeSpec | None = None,
    shedding: ReferenceShedding | None = None,
    tiers: Sequence[ReferenceTier] = (),
    swap: ReferenceSwap | None = None,
    balance: ReferenceBalance | None = None,
    received: Sequence[int | None] = (),
    batching: Literal["prefill_first", "decode_first"] | None = None,
) -> Generator[int, None, ReferenceResult]:
    """Serve `requests` on one replica; yields the time at which it goes on, when a step begins and when it ends.

    `batching` None is chunked, or stage where `max_num_batched_tokens` is None, as it is for decode_first; either other
    one is without tiers, swap, drafts and received requests. `concurrency` None is an open loop. `offset` is where this
    replica starts in the pools of expert outcomes. Groups of layers take blocks from one cache: full ones those of all
    tokens, windowed ones as many as the window may touch, wherever in a block it begins. `policy` is fcfs, or goes
    by what each request has: sjf by `predicted` output tokens, priority by `priorities`, of which one is gained in each
    `ageing_ps`, edf by limits of the time to the first token, vtc by what `tenants` had, tokens of prompts and outputs
    by their weights, over those of tenants. Of one prompt, a step computes no more than `long_prefill_token_threshold`
    tokens; 0: any number. Limits are those of each data-parallel group.
    `prefixes`: ids of the full blocks of each request, by which it finds what others computed; None: no prefix cache,
    which has `tiers` below it, and keeps of windows what `retention` says (`PhysicalBlocks`).
    `max_tokens`: the most output tokens that each request declares, 0: none; they are what no_evict reserves.
    `speculative`: what drafts each decoding request verifies in a step, without windows; None: none.
    `shedding`: says which requests are rejected as they arrive; None: none that can be served.
    `swap`: host memory for blocks of preempted requests, whose copies steps wait for; None: they are computed again.
    `balance`: says when data-parallel groups hold prompts back; without prefix cache; None: never.
    `received`: when requests had their first token elsewhere, whose KV cache they bring here if there is more to come;
    None: they have all of it here. Without closed loops.
    """
    assert pools is None or pools.seed == seed
    drafts = ReferenceDrafts(speculative, seed)
    costs = ReferenceCosts(plan, pools, mode, replica, offset, drafts.verify_tokens)
    by = ReferenceOrder(policy, predicted, priorities, limits_ps, ageing_ps)
    longest_chunk = max_num_batched_tokens or UNLIMITED
    most_of_one = long_prefill_token_threshold or UNLIMITED
    groups_of_layers = full_groups, windowed_groups, window_tokens
    counts = ReferenceBlocks(block_size, *groups_of_layers, longest_chunk, drafts.slots, kv_admission == "no_evict")
    blocks_of, most_blocks_of = counts.of, counts.most_of
    reserves = kv_admission != "prompt"
    assert kv_admission == "oracle" or blocks_of(max_model_len, longest_chunk) <= kv_capacity_blocks

    groups = range(1 if plan.micro_batches else plan.data_parallel)
    assert not tiers or len(groups) == 1
    of_cache = tiers, counts, drafts.last_again, retention, [asked.input_tokens for asked in requests]
    kept = [PhysicalBlocks(kv_capacity_blocks, block_size, prefixes, *of_cache) for _ in groups if prefixes is not None]
    caches = kept or [None for _ in groups]

    def blocks_used(group: int) -> int:
        cache = caches[group]
        return sum(request.blocks for request in running[group]) if cache is None else len(cache.held)

    everyone = served_requests(requests, max_tokens, max_model_len)
    not_sent: list[ServedRequest] = []  # closed loop: those that wait for another one to leave
    arriving: list[ServedRequest] = []  # by index: their arrival is known, the engine has not seen them yet
    waiting: list[list[ServedRequest]] = [[] for _ in groups]
    loading: list[tuple[int, ServedRequest, int]] = []  # with blocks that are there at a time, and tokens in them
    running: list[list[ServedRequest]] = [[] for _ in groups]  # in order of admission
    gone = [0 for _ in groups]  # that left at the end of the last step
    result = ReferenceResult()
    now = 0

    answered: dict[int, int] = {}  # by number: when who follows a request can be sent at the earliest, ps

    def answer(request: ServedRequest, at_ps: int) -> None:
        answered[request.number] = at_ps
        for asked, follower in zip(requests, everyone, strict=True):
            if asked.parents and follower.arrival == NEVER and answered.keys() >= set(asked.parents):
                sent_ps = max(answered[parent] for parent in asked.parents) + asked.think_ps
                follower.arrival = sent_ps * FS_PER_PS
                arriving.append(follower)

    shares = [ReferenceShares(*token_weights, tenant_weights) for _ in groups]

    def tenant_of(request: ServedRequest) -> str:
        return tenants[request.number] if tenants else ""

    def refused(request: ServedRequest) -> bool:
        most = most_blocks_of(request, computed=False)
        return request.input + 1 > max_model_len or (reserves and most > kv_capacity_blocks)

    def order(request: ServedRequest) -> tuple[Fraction | float, int, int]:
        return by.key(request, now, shares[request.group].had(tenant_of(request)))

    def next_of(group: int) -> ServedRequest:
        return waiting[group][0] if policy == "fcfs" else min(waiting[group], key=order)

    def fits(request: ServedRequest, group: int) -> bool:
        known, cache = request.input + request.emitted, caches[group]
        if reserves:
            reserved = sum(most_blocks_of(one, one.decoding) for one in running[group])
            reserved += sum(most_blocks_of(one, computed=False) for _, one, _ in loading)
            return reserved + most_blocks_of(request, computed=request.brings) <= kv_capacity_blocks
        if cache is not None:
            return cache.fits(request.number, known, prompt=not request.brings)
        return blocks_of(known, 1 if request.brings else longest_chunk) <= kv_capacity_blocks - blocks_used(group)

    def budget_of(group: int) -> int:
        verified = drafts.verify_tokens * len(decoding[group])
        return UNLIMITED if max_num_batched_tokens is None else max_num_batched_tokens - verified

    def has_prompt(group: int) -> bool:
        # Whether the present step can compute some of one.
        if budget_of(group) <= 0:
            return False
        if any(not request.decoding for request in running[group]):
            return True
        joins = waiting[group] and not preempted[group] and len(running[group]) < max_num_seqs
        return bool(joins) and fits(next_of(group), group)

    def compute(request: ServedRequest, most: int) -> int:
        # A chunk of its prompt in the present step.
        tokens = min(request.prefill_len - request.kv, most, most_of_one)
        chunks[request.group].append((request, Chunk(tokens, request.kv)))
        cache = caches[request.group]
        if cache is not None:
            computed.append(cache.computed(request.number, request.kv, request.kv + tokens, now))
        return tokens

    def send_next(arrival: int) -> None:
        # In a closed loop the next one takes the place of a refused one.
        while not_sent:
            request = not_sent.pop(0)
            request.arrival = arrival
            if not refused(request):
                arriving.append(request)
                return
            request.status = "rejected"

    for token_at, request in zip(received, everyone, strict=False):
        if token_at is not None and request.output > 1 and not refused(request):
            request.first_scheduled = request.first_token = request.last_token = token_at
            request.emitted, request.brings = 1, True
    if concurrency is None:
        arriving = [request for request in everyone if request.arrival != NEVER]
    else:
        not_sent = list(everyone)
        for _ in range(concurrency):
            send_next(0)

    while True:
        # Arrivals: first come first.
        while due := [request for request in arriving if request.arrival <= now]:
            request = min(due, key=lambda one: (one.arrival, one.number))
            arriving.remove(request)
            if refused(request) or (shedding is not None and shedding.rejects(request, waiting, running, loading)):
                request.status = "rejected"
                answer(request, request.arrival // FS_PER_PS)
            else:
                in_step = request.arrival // FS_PER_PS < now // FS_PER_PS  # at whose end some have left
                request.group = least_loaded(waiting, running, gone if in_step else [0 for _ in groups])
                shares[request.group].enter(tenant_of(request), set(map(tenant_of, waiting[request.group])))
                waiting[request.group].append(request)
        if max_time_fs is not None and now >= max_time_fs:
            break
        if not any(running) and not any(waiting) and all(ready > now for ready, _, _ in loading):
            if not arriving and not loading:
                break
            upcoming = min([request.arrival for request in arriving] + [ready for ready, _, _ in loading])
            if max_time_fs is not None and upcoming >= max_time_fs:
                break
            now = upcoming
            continue

        yield now
        decoding: list[list[ServedRequest]] = [[] for _ in groups]
        chunks: list[list[tuple[ServedRequest, Chunk]]] = [[] for _ in groups]
        computed: list[list[int]] = []  # ids of blocks that the step computes, by chunk
        preempted = [False for _ in groups]
        prompts_alone = batching == "prefill_first" and has_prompt(0)
        for group in groups if not prompts_alone else ():
            # 1. Growth: every decoding request stores one more token.
            cache = caches[group]
            while True:
                decoding[group] = [request for request in running[group] if request.decoding]
                grown = sum(blocks_of(request.kv + 1) - request.blocks for request in decoding[group])
                if grown <= kv_capacity_blocks - blocks_used(group):
                    break
                victim = running[group][-1] if policy == "fcfs" else max(running[group], key=order)
                running[group].remove(victim)
                if cache is not None:
                    cache.leave(victim.number, victim.prefill_len, victim.settled, now)
                victim.brings = swap is not None and victim.decoding and swap.takes(victim.number, blocks_of(victim.kv))
                victim.kv = victim.blocks = 0
                victim.preemptions += 1
                shares[group].enter(tenant_of(victim), set(map(tenant_of, waiting[group])))
                waiting[group].insert(0, victim)
                preempted[group] = True
            for request in decoding[group]:
                request.blocks = blocks_of(request.kv + 1)
            if cache is not None:
                cache.grow({request.number: request.kv + 1 for request in decoding[group]}, now)

        if batching is not None:
            prompts_go = prompts_alone or (batching == "decode_first" and not any(decoding))
        else:
            prompts_go = balance is None or balance.prompts_go(
                [has_prompt(group) for group in groups], [len(mine) for mine in decoding], max_num_seqs
            )
        for group in groups if prompts_go else ():
            # 2. Requests that are in the middle of their prefill go on, in order of admission.
            cache, budget = caches[group], budget_of(group)
            for request in running[group]:
                if not request.decoding and budget > 0:
                    budget -= compute(request, budget)

            # 3. Admission of who is next; the first that does not fit holds up all behind it.
            ran = running[group]
            while not preempted[group] and loading and loading[0][0] <= now and len(ran) < max_num_seqs and budget > 0:
                _, request, request.kv = loading.pop(0)
                ran.append(request)
                if request.first_scheduled == NEVER:
                    request.first_scheduled = now
                budget -= compute(request, budget)
            while not preempted[group] and waiting[group] and len(ran) < max_num_seqs and budget > 0:
                request = next_of(group)
                known = request.input + request.emitted
                if request.brings and budget < drafts.verify_tokens:
                    break
                if not fits(request, group):
                    break
                waiting[group].remove(request)
                shares[group].admit(tenant_of(request), request.input, first=request.first_scheduled == NEVER)
                if request.brings:
                    if swap is not None:
                        swap.gives_back(request.number)
                    ran.append(request)
                    decoding[group].append(request)
                    request.kv = request.settled = request.prefill_len = known - 1
                    request.blocks = blocks_of(known)
                    request.brings = False
                    if cache is not None:
                        cache.bring(request.number, known, now)
                    budget -= drafts.verify_tokens
                    continue
                request.prefill_len = known
                request.blocks = blocks_of(known, longest_chunk)
                request.kv = 0
                if cache is not None:
                    there, ready = cache.admit(request.number, known, now, again=request.preemptions > 0)
                    if ready > now:
                        loading.append((ready, request, there))
                        loading.sort(key=lambda one: one[0])
                        continue
                    request.kv = there
                ran.append(request)
                if request.first_scheduled == NEVER:
                    request.first_scheduled = now
                budget -= compute(request, budget)
        if not any(decoding) and not any(chunks):
            assert loading, "a step without work"
            if not any(preempted):  # all wait for what holds blocks and is not there yet
                upcoming = min([*(one.arrival for one in arriving), *(ready for ready, _, _ in loading)])
                if max_time_fs is not None and upcoming >= max_time_fs:
                    break
                now = upcoming
            continue

        # The step itself: all groups wait for the slowest, and for the experts of all tokens.
        contexts = [sum(request.kv + drafts.verify_tokens for request in mine) for mine in decoding]
        gains = {
            request: min(drafts.tokens(request.number, len(result.steps)), request.output - request.emitted)
            for request in chain(*decoding)
        }
        completed = [
            [request for request, chunk in mine if request.kv + chunk.tokens == request.prefill_len] for mine in chunks
        ]
        outputs = [sum(map(gains.get, decoding[group])) + len(completed[group]) for group in groups]
        sampled = [drafts.verify_tokens * len(decoding[group]) + len(chunks[group]) for group in groups]
        sampled = outputs if speculative is None else sampled
        shapes = [[chunk for _, chunk in mine] for mine in chunks]
        lengths = [len(mine) for mine in decoding]
        duration = costs.duration_fs(len(result.steps), now, lengths, contexts, shapes, outputs, sampled)
        for cache in kept:
            cache.check()
        now += 0 if swap is None else swap.wait()
        assert all(blocks_used(group) <= kv_capacity_blocks for group in groups)
        prefill_tokens, used = sum(chunk.tokens for chunk in chain(*shapes)), sum(map(blocks_used, groups))
        step = sum(lengths), sum(contexts), prefill_tokens, sum(map(len, chunks)), sum(outputs), used
        result.steps.append(ReferenceStep(now, duration, *step))
        now += duration
        if shedding is not None:
            shedding.saw(now, duration, prefill_tokens, sum(sum(cache.hit_tokens) for cache in kept))

        # Its end.
        yield now
        for ids in computed:
            caches[0].tiers.cached(ids, now)
        gone = [0 for _ in groups]
        emitting = [request for group in groups for request in [*decoding[group], *completed[group]]]
        result.itl += Counter(now - one.last_token for one in emitting if one.last_token != NEVER).items()
        for request in (request for request in emitting if request.last_token != NEVER):
            request.longest_gap = max(request.longest_gap, now - request.last_token)
        for group in groups:
            for request, chunk in chunks[group]:
                request.kv = request.settled = request.kv + chunk.tokens
            for request in decoding[group]:
                request.settled = request.kv + 1  # what of this step is sure before it ends
                request.kv += gains[request]
            for request in completed[group]:
                request.blocks = blocks_of(request.kv)
        for request in emitting:
            if (cache := caches[request.group]) is not None and request in completed[request.group]:
                cache.shrink(request.number, request.kv)
            gained = gains.get(request, 1)
            request.emitted += gained
            shares[request.group].emit(tenant_of(request), gained)
            request.last_token = now
            if request.first_token == NEVER:
                request.first_token = now
            if request.emitted == request.output:
                request.finish = now
                request.status = "finished"
                running[request.group].remove(request)
                gone[request.group] += 1
                request.blocks = 0
                if cache is not None:
                    cache.leave(request.number, request.prefill_len, request.settled, now)
                send_next((now // FS_PER_PS + plan.frontend_ps) * FS_PER_PS)
                answer(request, now // FS_PER_PS + plan.frontend_ps + 1)  # an end counts in the next picosecond

    result.requests = [request.row(replica) for request in everyone]
    result.longest_gaps_fs = [request.longest_gap for request in everyone]
    for cache in kept:
        cache.tell(result)
        result.tiers = list(tiers)
    result.swaps = [] if swap is None else swap.of_all(len(everyone))
    return result
