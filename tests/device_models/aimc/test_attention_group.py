"""Chips with attention whose experts are elsewhere, held against the event-driven model, layer by layer."""

import pytest

from pimserve.cluster.validation.aimc_plan import Setting, decode_fs
from pimserve.device_models.aimc.aimc import EVENT_OVER_PLAN
from pimserve.device_models.aimc.event.graph import Sequence
from pimserve.device_models.aimc.event.simulate import simulate
from pimserve.device_models.aimc.mapping import Strategy
from pimserve.device_models.aimc.serving import plan_of
from pimserve.device_models.aimc.walk import Walker
from pimserve.device_models.operators import Part
from tests.device_models.aimc.test_ffn_serving import MIXTURES, STRATEGIES, placed

DECODES = [(1, 2), (1, 512), (2, 64), (4, 2), (8, 64), (16, 2), (16, 512), (64, 2), (64, 512)]
LEAST, MOST = EVENT_OVER_PLAN


def ratios(setting: Setting, parts: set[Part], strategy: Strategy, chips: int, layers: int) -> list[float]:
    """Event-driven model over plan of decode steps."""
    where = placed(Setting(setting.name, {**setting.model, "layers": layers}, setting.chip), parts, strategy, chips)
    experts = setting.model["moe"]["experts"]
    network, chip, mapping = where.network, where.chip, where.mapping
    plan = plan_of(Walker(where, [(1.0,) * experts]).walk(), chip, layer_by_layer=True)
    return [
        simulate(network, chip, mapping, [Sequence(1, 1, context - 1)] * requests).makespan_ps
        * 1000
        / decode_fs(plan, requests, context)
        for requests, context in DECODES
    ]


@pytest.mark.medium
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("chips", [1, 2])
@pytest.mark.parametrize("setting", MIXTURES, ids=lambda setting: setting.name)
def test_a_layer_takes_what_its_events_take(setting: Setting, chips: int, strategy: Strategy) -> None:
    found = ratios(setting, {"attention"}, strategy, chips, layers=1)
    assert LEAST <= min(found) <= max(found) <= MOST


@pytest.mark.parametrize("setting", MIXTURES, ids=lambda setting: setting.name)
def test_layers_that_wait_for_each_other_are_not_faster_than_a_stream_of_tokens(setting: Setting) -> None:
    """The event-driven model lets tokens go on at once, as if what experts give had been there."""
    found = ratios(setting, {"attention", "lm_head"}, "moe_separated", 1, layers=4)
    assert max(found) <= 1.02
    assert found[0] == pytest.approx(1, abs=0.02)  # one token waits for nobody
