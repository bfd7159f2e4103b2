"""Random plans of replicas whose experts are on devices of their own."""

from dataclasses import replace
from functools import cache

from hypothesis import strategies as st

from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.micro_batches import MicroBatches, Visit
from pimserve.device_models.operators import Runs
from pimserve.device_models.plan import CostPlan, Energy, RowTerm
from pimserve.device_models.routed_link import LinkEnd, RoutedLink
from pimserve.device_models.slowdown import in_repeats
from pimserve.device_models.split_experts import SideUnit, SplitExperts

FS_PER_MS = 10**12

_NUMBERS = st.integers(1, 4)
_CUTS = st.builds(
    lambda first, others: ((1, first), *sorted(others.items())),
    _NUMBERS,
    st.dictionaries(st.integers(2, 40), _NUMBERS, max_size=3),
)
_RATES = st.sampled_from([0.1, 0.3, 2.0])
_SLOW = st.sampled_from([0.0, 5.0, 300.0])


@st.composite
def parted(draw: st.DrawFn, term: ExpertTerm) -> SplitExperts:
    """The experts on two kinds of devices, of which each may have groups; in any order, of all layers or of each."""
    hot = draw(st.integers(1, term.experts - 1))
    sides = []
    for name, experts in (("hot_", hot), ("", term.experts - hot)):
        groups = draw(st.sampled_from([number for number in range(1, experts + 1) if experts % number == 0]))
        units = tuple(replace(unit, unit=name + unit.unit) for unit in term.units)
        top_k = min(term.top_k, experts)
        sides.append(replace(term, experts=experts, top_k=top_k, groups=groups, units=units))
    names = tuple(SideUnit(unit.unit) for side in sides for unit in side.units)
    order = st.permutations(range(term.experts)).map(tuple)
    slots = tuple(draw(order) for _ in range(draw(st.sampled_from([1, term.layers]))))
    return SplitExperts(term.experts, term.top_k, sides[0], sides[1], names, slots)


@st.composite
def mixed(draw: st.DrawFn, plan: CostPlan) -> CostPlan:
    """The plan with its experts elsewhere: layers of both kinds in any order, parts of the model on either group."""
    assert isinstance(plan.experts, ExpertTerm)
    if draw(st.booleans()):
        split = draw(parted(plan.experts))
        units = dict.fromkeys((*plan.units, *(unit.unit for unit in split.units)))
        plan = replace(plan, experts=split, units=tuple(units))
    assert plan.experts is not None
    moe_layers, dense_layers = plan.experts.layers, draw(st.integers(0, 3))
    dense_there, head_there = draw(st.booleans()), draw(st.booleans())
    kinds = draw(st.permutations(["moe"] * moe_layers + ["dense"] * dense_layers))
    visits: list[Visit] = []
    layers = dense = 0
    for kind in kinds:
        layers += 1
        if kind == "moe" or dense_there:
            visits.append(Visit(layers, dense, int(kind == "moe"), "moe_layers" if kind == "moe" else "dense_layers"))
            layers = dense = 0
        else:
            dense += 1
    if head_there:
        visits.append(Visit(layers, dense, 0, "last"))
        layers = dense = 0
    calls = sorted({visit.calls for visit in visits})
    rows = [replace(row, runs=draw(_runs(dense_layers, dense_there=dense_there))) for row in plan.rows]
    for stage, unit in (("dispatch", "dispatch"), ("experts", "experts_xpu"), ("combine", "combine")):
        for runs in calls:
            pieces = ((draw(st.integers(0, FS_PER_MS)), draw(st.integers(0, FS_PER_MS // 10))),)
            count = "outputs" if runs == "last" else "tokens"
            rows.append(RowTerm("there", "moe", unit, count, pieces, Energy(1, 2, 3), runs=runs, stage=stage))
    counts = moe_layers + dense_layers, dense_layers, moe_layers
    micro = MicroBatches(draw(_CUTS), counts, tuple(visits), (layers, dense))
    units = (*plan.units, "experts_xpu")
    plan = replace(plan, devices=plan.devices + 1, units=units, rows=tuple(rows), micro_batches=micro)
    return in_repeats(replace(plan, link=draw(st.none() | links(plan.experts))))


@st.composite
def links(draw: st.DrawFn, term: ExpertTerm | SplitExperts) -> RoutedLink:
    """A link to the devices of these experts, which are all alike popular."""
    sides = [term.hot, term.cold] if isinstance(term, SplitExperts) else [term]
    ends = [
        LinkEnd((side.experts // side.groups,) * side.groups, draw(st.integers(1, 2)), (1000.0, 2000.0), draw(_RATES))
        for side in sides
    ]
    ends[-1] = replace(ends[-1], shared_by=draw(st.integers(0, 2)))
    slow = draw(_SLOW)
    link = RoutedLink(
        term.layers, term.top_k, draw(st.booleans()), draw(st.integers(1, 3)), draw(_RATES), slow, tuple(ends)
    )
    return link.at([[1.0] * term.experts], term.slots)


@cache
def _runs(dense_layers: int, *, dense_there: bool) -> st.SearchStrategy[Runs]:
    """Where in a pass attention's devices run something."""
    here: list[Runs] = ["layers", "moe_layers", "first", "last"]
    return st.sampled_from([*here, "dense_layers"] if dense_layers and not dense_there else here)
