"""One token's way, held against the event-driven model with one token in it."""

from typing import Any

import numpy as np
import pytest

from pimserve.cluster.validation.aimc_plan import SETTINGS, Setting
from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.graph import Sequence
from pimserve.device_models.aimc.event.simulate import Outcome, simulate
from pimserve.device_models.aimc.mapping import Mapping, MappingSpec, Strategy, map_network
from pimserve.device_models.aimc.network import Network, network_of
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.serving import plan_of
from pimserve.device_models.aimc.walk import Walk, Walker
from pimserve.device_models.expert_picks import expert_share
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.registry import load_device

CONTEXT = 200
SHAPE = {"name": "m", "title": "m", "layers": 4, "hidden": 512, "vocab": 2048, "max_model_len_tokens": 4096}
BY_NAME = {setting.name: setting for setting in SETTINGS}


def mapped(setting: Setting, strategy: Strategy = "moe_separated", **chip: Any) -> tuple[Network, Chip, Mapping]:
    spec = load_device({"preset": "aimc-realistic", "digital_units": 8, **setting.chip, **chip}).spec
    assert isinstance(spec, AimcSpec)
    network = network_of(ModelSpec.model_validate({**SHAPE, **setting.model}))
    chips = spec.chips(setting.chips)
    return network, chips, map_network(network, chips, MappingSpec(strategy=strategy))


def walked(network: Network, chip: Chip, mapping: Mapping) -> Walk:
    experts = max(len(block.experts) for block in network.blocks)
    return Walker(PlacedNetwork(network, chip, mapping), [(1.0,) * experts]).walk()


def one_token(network: Network, chip: Chip, mapping: Mapping) -> Outcome:
    """A decode step of one request that attends to CONTEXT tokens."""
    return simulate(network, chip, mapping, [Sequence(1, 1, CONTEXT - 1)])


@pytest.mark.parametrize("partial_sums", ["tile", "pool"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_chain_is_what_one_token_takes(setting: Setting, partial_sums: str) -> None:
    network, chip, mapping = mapped(setting, partial_sums=partial_sums)
    walk = walked(network, chip, mapping)
    attention = sum(fixed + slope * CONTEXT for fixed, slope in (each.exposed_ps for each in walk.attention))
    chain = sum(walk.chain_ps.values()) + attention
    assert chain == pytest.approx(one_token(network, chip, mapping).makespan_ps, rel=0.02)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_energy_is_what_one_token_takes(setting: Setting) -> None:
    network, chip, mapping = mapped(setting)
    walk, event = walked(network, chip, mapping), one_token(network, chip, mapping)
    attention = sum(each.read_nj[0] + each.read_nj[1] * CONTEXT for each in walk.attention)
    attention += sum(each.compute_nj[0] + each.compute_nj[1] * CONTEXT for each in walk.attention)
    attention += sum(each.write.nj for each in walk.attention)
    ours = sum(walk.energy_nj.values()) + sum(walk.sampled_nj.values()) + attention
    theirs = event.total_energy_nj - event.energy_nj["passive"]
    assert ours == pytest.approx(theirs, rel=0.02)  # transfers of border chunks are smaller than we count


@pytest.mark.medium
@pytest.mark.parametrize(("requests", "tokens"), [(1, 16), (3, 64)])
@pytest.mark.parametrize("preset", ["aimc-realistic", "aimc-paper-table", "aimc-nand"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_energy_of_prompts_is_that_of_the_event_model(
    setting: Setting, preset: str, requests: int, tokens: int
) -> None:
    network, chip, mapping = mapped(setting, preset=preset)
    plan = plan_of(walked(network, chip, mapping), chip)
    event = simulate(network, chip, mapping, [Sequence(tokens, 1)] * requests)
    rows = {"tokens": requests * tokens, "outputs": requests}
    ours = sum((t.energy.dram_per_row + t.energy.compute_per_row) * rows[t.rows] for t in plan.rows)
    ours += requests * sum(sum(term.cost((tokens, 0))[1:]) for term in plan.prefill)
    theirs = event.total_energy_nj - event.energy_nj["passive"]
    assert ours / 1000 == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_tiles_work_as_long_as_their_mvms(setting: Setting) -> None:
    network, chip, mapping = mapped(setting)
    walk, event = walked(network, chip, mapping), one_token(network, chip, mapping)
    tiles = sum((part.tiles for part in walk.segments), walk.last.tiles + walk.head.tiles)
    mvms = tiles / chip.mvm.ps
    # Which row block of the embedding is read depends on the token: a share of one MVM each for us.
    embedding = np.zeros(chip.all_tiles, bool)
    embedding[list(mapping.tiles[network.token_embedding])] = True
    counted = np.array(event.mvms_per_tile)
    assert mvms[~embedding] == pytest.approx(counted[~embedding])
    assert mvms.sum() == pytest.approx(counted.sum())


def test_scattered_experts_load_tiles_unevenly_but_keep_the_sum() -> None:
    setting = BY_NAME["16 experts, top 1"]
    together, apart = (walked(*mapped(setting, strategy)) for strategy in ("moe_separated", "greedy_in_order"))
    work = [sum((part.tiles for part in walk.segments), walk.last.tiles).sum() for walk in (together, apart)]
    assert work[0] == pytest.approx(work[1])
    assert sum(together.energy_nj.values()) == pytest.approx(sum(apart.energy_nj.values()))


@pytest.mark.parametrize("strategy", ["moe_separated", "greedy_in_order"])
def test_the_way_to_the_next_chip_is_counted(strategy: Strategy) -> None:
    setting = BY_NAME["8 gated experts, top 2, on 2 chips"]
    near, far = (mapped(setting, strategy, link_latency_us=latency) for latency in (0.05, 1.05))
    slower = sum(walked(*far).chain_ps.values()) - sum(walked(*near).chain_ps.values())
    assert slower == one_token(*far).makespan_ps - one_token(*near).makespan_ps == 1e6  # one crossing, 1 us more


@pytest.mark.parametrize(("weights", "top_k"), [((1.0,) * 8, 2), ((1.0, 2.0, 3.0, 4.0), 1), ((5.0, 1.0, 1.0), 2)])
def test_shares_of_picks_sum_to_top_k(weights: tuple[float, ...], top_k: int) -> None:
    share = expert_share(weights, top_k)
    assert sum(share) == pytest.approx(top_k)
    assert sorted(share) == pytest.approx([share[i] for i in np.argsort(weights, kind="stable")])
    if top_k == 1:
        assert share == pytest.approx([weight / sum(weights) for weight in weights])
    assert max(share) <= 1 + 1e-12
