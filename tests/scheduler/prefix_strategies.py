"""Random cases with a prefix cache, which many requests share and few blocks hold."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import count

from hypothesis import strategies as st

from pimserve.device_models.plan import CostPlan
from pimserve.scheduler.kv_tier_spec import KvTierSpec

from .reference_engine import ReferenceRequest
from .strategies import Case, cases, windows

BLOCK_BYTES = 1_000

# Made once: hypothesis looks into each new strategy before it draws.
_CASES = cases()
_BLOCK_SIZE = st.integers(1, 4) | st.integers(1, 16)
_WINDOWS = windows() | windows(12)
_CAPACITY_GB = st.none() | st.integers(0, 60).map(lambda blocks: blocks * BLOCK_BYTES / 1e9)
_GB_PER_S = st.none() | st.integers(50, 20_000).map(lambda us: BLOCK_BYTES / 1e3 / us)  # us per block


@cache
def _known(blocks: int) -> st.SearchStrategy[int]:
    """Two thirds all of them."""
    return st.one_of(st.just(blocks), st.just(blocks), st.integers(0, blocks))


@cache
def _common(known: int) -> st.SearchStrategy[int]:
    return st.one_of(st.just(known), st.integers(0, known))


@cache
def _spare(blocks: int) -> st.SearchStrategy[int]:
    return st.integers(0, blocks // 4) | st.integers(0, 3 * blocks)


@st.composite
def prefix_trees(
    draw: st.DrawFn, requests: Sequence[ReferenceRequest], block_size: int, *, shared: bool = True
) -> list[list[int]]:
    """Ids of the full blocks of requests: each goes on where it leaves one before it, or the root of the tree.

    What it goes along with may be output of either. A third of the requests know fewer ids than they have blocks.
    """
    fresh = count()
    rows: list[list[int]] = []
    for request in requests:
        blocks = (request.input_tokens + request.output_tokens) // block_size
        known = draw(_known(blocks))
        other = draw(st.sampled_from(rows)) if shared and rows else []
        common = other[: draw(_common(known))]
        rows.append([*common, *(next(fresh) for _ in range(known - len(common)))])
    return rows


@st.composite
def prefix_cases(draw: st.DrawFn, *, shared: bool = True, of: st.SearchStrategy[CostPlan] | None = None) -> Case:
    """Cases of one group of layers; most have small blocks, so that prompts have several."""
    case = draw(_CASES if of is None else cases(of))
    block_size = draw(_BLOCK_SIZE)
    blocks = -(-case.max_model_len // block_size)
    return replace(
        case,
        block_size=block_size,
        kv_capacity_blocks=blocks + draw(_spare(blocks)),
        full_groups=1,
        windowed_groups=0,
        window_tokens=0,
        prefixes=draw(prefix_trees(case.requests, block_size, shared=shared)),
    )


@st.composite
def windowed_prefix_cases(draw: st.DrawFn) -> Case:
    """The same of layers with attention windows beside others, which fill up after few blocks, or late.

    A third of the caches keep all of their blocks, a third only what prompts need, a third every few blocks too.
    """
    case, groups = draw(prefix_cases()), draw(_WINDOWS)
    blocks = groups.blocks(case.max_model_len, case.block_size, case.max_num_batched_tokens or case.max_model_len)
    blocks += draw(_spare(blocks))
    return replace(
        case,
        kv_capacity_blocks=-(-blocks // groups.full) * groups.full,
        full_groups=groups.full,
        windowed_groups=groups.windowed,
        window_tokens=groups.window_tokens,
        retention=draw(retentions(case.block_size)),
    )


@cache
def retentions(block_size: int) -> st.SearchStrategy[int | None]:
    """Intervals in which blocks of windows are kept, tokens; None: all are."""
    return st.none() | st.just(0) | st.integers(1, 6).map(block_size.__mul__)


@st.composite
def tier_cases(draw: st.DrawFn, *, of: st.SearchStrategy[CostPlan] | None = None, windowed: bool = False) -> Case:
    """Cases of a small prefix cache with one to three tiers, whose blocks take no time, or up to many steps."""
    case, names = draw(windowed_prefix_cases() if windowed else prefix_cases(of=of)), ("host", "disk", "remote")
    if case.groups > 1:  # refused together
        case = replace(case, plan=replace(case.plan, data_parallel=1))
    tiers = tuple(
        KvTierSpec(
            name=name,
            capacity_gb=draw(_CAPACITY_GB),
            gb_per_s=draw(_GB_PER_S),
            latency_us=draw(st.sampled_from([0, 0, 1, 1500, 40_000])),
            write=draw(st.sampled_from(["through", "back"])),
        )
        for name in names[: draw(st.integers(1, 3))]
    )
    return replace(case, tiers=tiers, block_bytes=BLOCK_BYTES)


@st.composite
def shared_tier_cases(draw: st.DrawFn, cases_with_tiers: st.SearchStrategy[Case]) -> list[Case]:
    """Replicas of such a case whose last tier is one, and its requests, dealt out to them in turn."""
    case = draw(cases_with_tiers)
    replicas = draw(st.integers(1, 3))
    tiers = (*case.tiers[:-1], case.tiers[-1].model_copy(update={"shared": True}))
    return [
        replace(
            case,
            tiers=tiers,
            replica=replica,
            requests=case.requests[replica::replicas],
            prefixes=None if case.prefixes is None else case.prefixes[replica::replicas],
            max_tokens=case.max_tokens[replica::replicas],
        )
        for replica in range(replicas)
    ]
