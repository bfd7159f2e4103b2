"""Layouts of experts that follow popularities as they drift.

Time is cut into intervals of `rebalance_every` steps of the drift. At the beginning of one, a layout is balanced by the
loads of the interval before. Its weights move while that one lasts, beside the steps, and it holds in the next one. So
a layout is two intervals behind what it was made from, and every layout can be told from seed and time alone.

What brings experts to their places takes energy, which counts when a step begins under a layout, and of all that came
before it since the last step.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeGuard, TypeVar

from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.expert_layout import Slots, layout
from pimserve.device_models.expert_moves import Layouts, moved
from pimserve.device_models.experts import ExpertTerm, RoutedExperts

if TYPE_CHECKING:
    from pimserve.device_models.routing import Routing

BEHIND = 2  # intervals
_Experts = TypeVar("_Experts", bound=RoutedExperts)


def rebalances(term: RoutedExperts | None) -> TypeGuard[ExpertTerm | CrossbarExperts]:
    """Whether layouts of the experts follow popularities."""
    return isinstance(term, ExpertTerm | CrossbarExperts) and bool(term.rebalance_every)


def layouts_by(term: RoutedExperts, epoch: int) -> int:
    """How many layouts have followed the first one after so many steps of the drift; the last of them holds then."""
    return max(0, epoch // term.rebalance_every - BEHIND + 1) if rebalances(term) else 0


def begins_at(term: ExpertTerm | CrossbarExperts, number: int) -> int:
    """After how many steps of the drift the layout of that number holds; the first one has number 0."""
    return (number - 1 + BEHIND) * term.rebalance_every


def layouts_around(term: ExpertTerm | CrossbarExperts, routing: Routing, seed: int, number: int) -> Layouts:
    """The layout before that of this number, and that one."""
    epoch = begins_at(term, number)
    return placed_at(term, routing, seed, epoch - 1).slots, placed_at(term, routing, seed, epoch).slots


def moves_pj(term: RoutedExperts, routing: Routing, seed: int, numbers: range) -> int:
    """Energy that brought experts to their places in the layouts of these numbers, whatever steps did meanwhile."""
    return sum(_moves_pj(term, routing, seed, number) for number in numbers) if rebalances(term) else 0


def placed_at(term: _Experts, routing: Routing, seed: int, epoch: int) -> _Experts:
    """The routed experts as they lie after so many steps of the drift."""
    if not isinstance(term, ExpertTerm | CrossbarExperts) or not layouts_by(term, epoch):
        return term
    first = (epoch // term.rebalance_every - BEHIND) * term.rebalance_every
    return replace(term, slots=_balanced(term, routing, seed, first))


@lru_cache(maxsize=64)
def _balanced(term: ExpertTerm | CrossbarExperts, routing: Routing, seed: int, first: int) -> tuple[Slots, ...]:
    """The layouts that the loads of an interval make, which begins after so many steps of the drift."""
    loads = routing.expected_loads(term.experts, term.top_k, seed, range(first, first + term.rebalance_every))
    redundant = term.physical_experts - term.experts
    return tuple(layout("popularity", load, term.groups, redundant) for load in loads.tolist())


@lru_cache(maxsize=64)
def _moves_pj(term: ExpertTerm | CrossbarExperts, routing: Routing, seed: int, number: int) -> int:
    return moved(term, layouts_around(term, routing, seed, number)) * term.move_pj
