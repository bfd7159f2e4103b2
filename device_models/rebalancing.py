"""Layouts of experts that follow popularities as they drift.

Time is cut into intervals of `rebalance_every` steps of the drift. At the beginning of one, a layout is balanced by the
loads of the interval before. Its weights move while that one lasts, beside the steps, and it holds in the next one. So
a layout is two intervals behind what it was made from, and every layout can be told from seed and time alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.expert_layout import Slots, layout
from pimserve.device_models.experts import ExpertTerm, RoutedExperts

if TYPE_CHECKING:
    from pimserve.device_models.routing import Routing

BEHIND = 2  # intervals
_Experts = TypeVar("_Experts", bound=RoutedExperts)


def placed_at(term: _Experts, routing: Routing, seed: int, epoch: int) -> _Experts:
    """The routed experts as they lie after so many steps of the drift."""
    if not isinstance(term, ExpertTerm | CrossbarExperts):
        return term
    if not term.rebalance_every or epoch < BEHIND * term.rebalance_every:
        return term
    first = (epoch // term.rebalance_every - BEHIND) * term.rebalance_every
    return replace(term, slots=_balanced(term, routing, seed, first))


@lru_cache(maxsize=64)
def _balanced(term: ExpertTerm | CrossbarExperts, routing: Routing, seed: int, first: int) -> tuple[Slots, ...]:
    """The layouts that the loads of an interval make, which begins after so many steps of the drift."""
    loads = routing.expected_loads(term.experts, term.top_k, seed, range(first, first + term.rebalance_every))
    redundant = term.physical_experts - term.experts
    return tuple(layout("popularity", load, term.groups, redundant) for load in loads.tolist())
