"""Which expert is on which chip: experts by other names, copies on crossbars of their own, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from pimserve.device_models.aimc.aimc import Aimc
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import Demand, Fitted
from pimserve.device_models.expert_layout import SlotCounts
from pimserve.device_models.expert_picks import expert_share
from pimserve.device_models.operators import Parallelism, Part
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError

EXPERTS: frozenset[Part] = frozenset({"routed_experts"})
SKEWED = ((8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0),)
REVERSED = (tuple(reversed(range(8))),)


def fitted(chips: int = 4, redundant: int = 0, spread: str = "experts", **changes: object) -> Fitted:
    device = load_device({"preset": "aimc-realistic", "spread": spread, "tiers": 128})
    assert isinstance(device, Aimc)
    split = Parallelism(1, chips, chips, "ep", redundant)
    demand = Demand(load_model("mixtral-8x7b"), split, expert_weights=SKEWED, parts=EXPERTS)
    return device.fit(replace(demand, **changes))  # type: ignore[arg-type]


def term_of(found: Fitted) -> CrossbarExperts:
    assert isinstance(found.plan.experts, CrossbarExperts)
    return found.plan.experts


def test_a_layout_gives_slots_other_experts_and_leaves_the_chips_alone() -> None:
    plain, other = term_of(fitted()), term_of(fitted(expert_slots=REVERSED))
    assert replace(other, slots=()) == plain
    tokens = np.array([[5, 0, 3, 1, 0, 0, 0, 7]])
    placed = SlotCounts(other.slots).of(tokens[None])[0]
    assert (other.layer_features(placed) == plain.layer_features(tokens[:, ::-1])).all()


def test_copies_take_crossbars_of_their_own() -> None:
    slots = ((0, 4, 5, 1, 6, 7, 0, 2, 3, 0, 1, 2),)
    plain, copied = fitted(), fitted(redundant=4, expert_slots=slots)
    term = term_of(copied)
    assert (term.experts, term.physical_experts, term.groups, len(term.chains)) == (8, 12, 4, 3)
    assert copied.facts["weights"] == plain.facts["weights"] * 12 // 8
    assert copied.facts["tiers_used"] == plain.facts["tiers_used"] * 12 // 8
    counts = SlotCounts(term.slots).of(np.array([[[9, 3, 2, 0, 0, 0, 0, 0]]]))[0]
    one = term_of(plain).layer_features(np.array([[9, 3, 2, 0, 0, 0, 0, 0]]))
    assert counts.tolist() == [[3, 0, 0, 2, 0, 0, 3, 1, 0, 3, 1, 1]]
    assert term.layer_features(counts)[0, 0] < one[0, 0]  # the hot expert's tokens are on three chips
    assert term.layer_features(counts)[0, -1] == one[0, -1]  # as many copies, of the same energy


def test_what_chips_send_each_other_follows_the_layout() -> None:
    slots = ((0, 4, 5, 1, 6, 7, 0, 2, 3, 0, 1, 2),)
    found = fitted(redundant=4, expert_slots=slots).point_to_point
    assert found is not None
    picks = found().picks
    assert sum(picks.values()) == pytest.approx(32 * 2)  # of all layers
    share = expert_share(SKEWED[0], 2)
    assert picks[0, 0] == pytest.approx(32 * (share[0] / 3 + share[4] + share[5]))
    assert picks[1, 1] == pytest.approx(32 * (share[1] / 2 + share[6] + share[7]))


def test_programming_covers_every_tier_of_every_expert() -> None:
    found = fitted(rebalance_every=3)
    assert found.expert_programming is not None
    programming = found.expert_programming()
    assert programming is not None
    assert programming.tiers.shape == (4, 32, 2, 512)
    assert programming.tiers.sum() == found.facts["tiers_used"]
    whole = np.ones((32, 4, 2), bool)
    assert programming.time_s(whole) == pytest.approx(found.facts["programming"]["time_s"])
    experts = found.plan.experts
    assert isinstance(experts, CrossbarExperts)
    assert experts.move_pj * whole.sum() == pytest.approx(found.facts["programming"]["joules"] * 1e12)
    assert programming.time_s(~whole) == 0
    assert fitted().expert_programming is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spread": "layers", "expert_slots": REVERSED}, "do not have as many experts of each layer"),
        ({"spread": "layers", "rebalance_every": 2}, "do not have as many experts of each layer"),
        (
            {"parts": frozenset({"attention", "routed_experts", "lm_head"}), "expert_slots": REVERSED},
            "expected loads of experts.*chips of their own",
        ),
    ],
)
def test_where_a_layout_says_nothing_it_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=rf"^cluster\.expert_placement: .*{message}"):
        fitted(**changes)  # type: ignore[arg-type]
