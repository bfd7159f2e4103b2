"""Random cost plans, dense and with experts, of devices that work one after the other or as a pipeline.

Steps take about 1 to 20 ms. A quarter of the plans are flat (every step takes the same whole number of ms).
"""

from functools import cache
from typing import get_args

from hypothesis import strategies as st

from pimserve.device_models.experts import ExpertTerm, ExpertUnit, Selection
from pimserve.device_models.pipeline import Load, PassivePower, PipelineTerm, Station
from pimserve.device_models.plan import (
    HOST,
    CostPlan,
    DecodeAttentionTerm,
    DecodeWay,
    Energy,
    PrefillAttentionTerm,
    RowTerm,
)
from tests.scheduler.mixed_strategies import mixed

from .request_strategies import FS_PER_MS

# Strategies that hang on nothing drawn are made once: hypothesis looks into each new one before it draws.
_FRONTEND_PS = st.sampled_from((0, 0, 3 * 10**9 + 1, 7 * 10**10))  # ms and tens of ms
_WINDOWS = st.lists(st.none() | st.integers(1, 300), min_size=1, max_size=2)
_PER_CONTEXT = st.integers(0, 10**9)
_PER_TOKEN = st.integers(0, FS_PER_MS // 2)
_PER_REQUEST = st.just(0) | _PER_TOKEN
_SLACK = st.just(-1) | st.integers(0, 5 * FS_PER_MS)
_PASSIVE = st.none() | st.just(PassivePower(1, 2, 1))
_PREFILL = st.lists(st.tuples(st.integers(0, 10**10), _PER_CONTEXT, st.integers(0, 10**8)), min_size=1, max_size=2)
_PREFILL_PIECES = _PREFILL.map(tuple)


@cache
def _pieces(const: int, slope: int) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    """Up to three pieces of const + slope x rows, of at most these magnitudes."""
    piece = st.tuples(st.integers(0, const), st.integers(0, slope))
    return st.lists(piece, min_size=1, max_size=3).map(tuple)


_OTHER_WAYS = st.lists(_pieces(2 * FS_PER_MS, FS_PER_MS // 20), max_size=2)
_EXPERT_TERMS = st.lists(_pieces(FS_PER_MS // 10, FS_PER_MS // 1000), min_size=1, max_size=2)


@st.composite
def row_terms(draw: st.DrawFn, unit: str) -> RowTerm:
    """Row terms of `unit` or the host that count anything, with up to two other algorithms to choose from."""
    pieces = _pieces(2 * FS_PER_MS, FS_PER_MS // 20)
    return RowTerm(
        name="any",
        category=draw(st.sampled_from(["fc", "communication", "step", "attention_prefill", "attention_decode", "moe"])),
        unit=draw(st.sampled_from([unit, HOST])),
        rows=draw(st.sampled_from(["tokens", "outputs", "decodes", "prompts", "requests"])),
        pieces=draw(pieces),
        energy=Energy(draw(st.integers(0, 9)), draw(st.integers(0, 9)), draw(st.integers(0, 9))),
        alternatives=tuple(draw(_OTHER_WAYS)),
    )


@cache
def _some_rows(unit: str) -> st.SearchStrategy[list[RowTerm]]:
    return st.lists(row_terms(unit), max_size=3)


@st.composite
def expert_terms(draw: st.DrawFn) -> ExpertTerm:
    """Routed experts on one or two units, in 1 to 3 layers."""
    experts = draw(st.integers(2, 8))
    units = tuple(
        ExpertUnit(
            unit=name,
            terms=tuple(draw(_EXPERT_TERMS)),
            decision=(draw(st.floats(0, 2)), draw(st.floats(0, 1))),
            weight_pj=1,
            token_dram_pj=1,
            token_compute_pj=1,
        )
        for name in draw(st.sampled_from([("xpu",), ("xpu", "pim")]))
    )
    selections: tuple[Selection, ...] = ("first",) if len(units) == 1 else get_args(Selection)
    return ExpertTerm(
        layers=draw(st.integers(1, 3)),
        experts=experts,
        top_k=draw(st.integers(1, min(3, experts))),
        groups=draw(st.sampled_from([groups for groups in range(1, experts + 1) if experts % groups == 0])),
        spaces=draw(st.integers(1, experts)),
        units=units,
        selection=draw(st.sampled_from(selections)),
        rebalance_every=draw(st.sampled_from([0, 0, 1, 2])),
    )


@cache
def loads(
    name: str, tokens: st.SearchStrategy[int], per_context: st.SearchStrategy[tuple[int, ...]]
) -> st.SearchStrategy[Load]:
    """What leaves busy time on a unit, with all, half or none of prefill attention."""
    return st.builds(
        Load, st.just(name), tokens, tokens, tokens, per_context, st.sampled_from([(0, 1), (1, 1), (1, 2)])
    )


@st.composite
def pipelines(draw: st.DrawFn) -> CostPlan:
    """Plans of devices that tokens pass through one behind the other, with up to three stations."""
    windows = draw(_WINDOWS)
    tokens, per_context = _PER_TOKEN, _per_context(len(windows))
    names = draw(st.lists(st.sampled_from(["tiles", "digital", "dram"]), min_size=1, max_size=3, unique=True))
    term = PipelineTerm(
        windows=tuple(windows),
        chain=(("fc", draw(st.integers(1, 5)) * FS_PER_MS), ("moe", draw(tokens))),
        chain_per_context=draw(per_context),
        stations=tuple(
            Station(
                *(name, "fc", draw(tokens), draw(tokens), draw(tokens), draw(per_context)),
                *(draw(tokens), draw(_PER_CONTEXT), draw(_SLACK), draw(tokens)),
            )
            for name in names
        ),
        per_prompt_token=draw(tokens),
        per_second_prompt_token=draw(tokens),
        prompt_category="moe",
        loads=tuple(draw(loads(name, tokens, per_context)) for name in names),
        device_loads=tuple(draw(loads(name, tokens, per_context)) for name in names for _ in range(2)),
    )
    return CostPlan(
        devices=2,
        data_parallel=1,
        units=tuple(names),
        rows=(
            RowTerm("crossbars", "fc", names[0], "tokens", ((0, 0),)),
            *draw(_some_rows(names[0])),
        ),
        decode=tuple(DecodeAttentionTerm(names[-1], window, 0, 1, 1) for window in windows),
        prefill=tuple(
            PrefillAttentionTerm(names[-1], window, True, tuple(draw(_PREFILL)), (1, 1, 1), 1) for window in windows
        ),
        experts=None,
        pipeline=term,
        passive=draw(_PASSIVE),
        frontend_ps=draw(_FRONTEND_PS),
    )


@cache
def _per_context(windows: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[_PER_CONTEXT for _ in range(windows)])


@st.composite
def plans(draw: st.DrawFn) -> CostPlan:
    """Dense and MoE plans of 1 to 3 data-parallel groups, some with experts on devices of their own, and pipelines."""
    if draw(st.integers(0, 4)) == 0:
        return draw(pipelines())
    plan = draw(_SERIAL)
    elsewhere = plan.experts is not None and draw(st.booleans())
    return draw(mixed(plan)) if elsewhere else plan


@st.composite
def mixed_plans(draw: st.DrawFn) -> CostPlan:
    """Those with experts on devices of their own."""
    return draw(mixed(draw(_WITH_EXPERTS)))


@st.composite
def serial_plans(draw: st.DrawFn, experts: st.SearchStrategy[ExpertTerm | None]) -> CostPlan:
    """Plans of devices that run one operator after the other, with such experts."""
    data_parallel = draw(st.integers(1, 3))
    term = draw(experts)
    if term is None and draw(st.booleans()):
        layers = RowTerm("layers", "fc", "xpu", "tokens", ((draw(st.integers(1, 20)) * FS_PER_MS, 0),))
        return CostPlan(data_parallel, data_parallel, ("xpu",), (layers,), (), (), None)
    slope = st.integers(10**7, 10**9)
    base = RowTerm("layers", "fc", "xpu", "tokens", ((draw(st.integers(1, 5)) * FS_PER_MS, draw(slope)),))
    rows = [base]
    if draw(st.booleans()):
        rows.append(RowTerm("qkv", "fc", "xpu", "tokens", draw(_pieces(5 * FS_PER_MS, FS_PER_MS // 50))))
    if draw(st.booleans()):
        rows.append(RowTerm("head", "fc", "xpu", "outputs", draw(_pieces(FS_PER_MS, FS_PER_MS // 10))))
    rows += draw(_some_rows("xpu"))
    windows = draw(_WINDOWS)

    def decode(unit: str) -> tuple[DecodeAttentionTerm, ...]:
        return tuple(DecodeAttentionTerm(unit, window, draw(slope), 1, 1, draw(_PER_REQUEST)) for window in windows)

    return CostPlan(
        devices=data_parallel,
        data_parallel=data_parallel,
        units=("xpu", "pim"),
        rows=tuple(rows),
        decode=decode("pim"),
        other_decode=DecodeWay(decode("xpu"), draw(st.booleans())) if draw(st.booleans()) else None,
        prefill=tuple(
            PrefillAttentionTerm("xpu", window, draw(st.booleans()), draw(_PREFILL_PIECES), (1, 1, 1), 1)
            for window in windows
        ),
        experts=term,
        overlap_attention=draw(st.booleans()),
        frontend_ps=draw(_FRONTEND_PS),
    )


_WITH_EXPERTS = serial_plans(expert_terms())
_SERIAL = serial_plans(st.none() | expert_terms())
