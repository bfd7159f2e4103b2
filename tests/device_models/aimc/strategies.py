"""Small networks on small chips for the event-driven model of 3D AIMC, by hand and random."""

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from pimserve.device_models.aimc.chip import Chip, Link
from pimserve.device_models.aimc.event.graph import COMPAT, PHYSICAL, Rules, Sequence
from pimserve.device_models.aimc.event.simulate import Outcome, simulate
from pimserve.device_models.aimc.mapping import Mapping
from pimserve.device_models.aimc.network import Network, gpt2_like, network_of
from pimserve.device_models.aimc.operation_costs import Dram, PlaceholderCosts, RateCosts
from pimserve.device_models.model import ModelSpec

GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 2}
MLA = {
    "kind": "mla",
    "heads": 2,
    "q_lora_rank": 4,
    "kv_lora_rank": 4,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 1,
    "v_head_dim": 2,
}
DRAM = Dram(gb=1, gb_per_s=2.0)
# Whole and handy: an MVM 100 ns, a hop 5 ns + 1 ns a byte, digital 2 ns + 1 ns an element.
RATES = RateCosts(
    mvm_ns=100,
    mvm_nj=10,
    hop_ns=5,
    hop_ns_per_byte=1,
    hop_nj=0.5,
    hop_pj_per_byte=10,
    digital_ns=2,
    add_elements_per_ns=1,
    norm_elements_per_ns=1,
    activation_elements_per_ns=1,
    digital_pj_per_op=1,
    attention_tflop_per_s=0.01,
    attention_pj_per_flop=1,
)


def chip_of(**changes: object) -> Chip:
    """Many tiles of one 8 x 8 tier, and units enough."""
    chip = Chip(
        tiles=400,
        tiers=1,
        tier_rows=8,
        tier_cols=8,
        digital_units=64,
        attention_units=4,
        costs=RATES,
        dram=DRAM,
        passive_w=2.0,
    )
    return replace(chip, **changes)


def spread(network: Network, chip: Chip) -> Mapping:
    """Chunk after chunk to tile after tile, and round again."""
    tiles, fill = [], [0] * chip.all_tiles
    tiers: list[tuple[int, ...]] = []
    at = 0
    for matrix in network.matrices:
        rows, cols = matrix.grid(chip.tier_rows, chip.tier_cols)
        mine = tuple((at + i) % chip.all_tiles for i in range(rows * cols))
        tiers.append(tuple((at + i) // chip.all_tiles for i in range(rows * cols)))
        for tile in mine:
            fill[tile] += 1
        tiles.append(mine)
        at += rows * cols
    return Mapping(tuple(tiles), tuple(tiers), tuple(fill))


def model(attention: dict = GQA, **changes: object) -> ModelSpec:
    """One gated dense layer of width 8."""
    shapes = {
        "name": "m",
        "title": "M",
        "layers": 1,
        "hidden": 8,
        "vocab": 8,
        "attention": attention,
        "max_model_len_tokens": 64,
    }
    ffn = {} if "moe" in changes else {"ffn": {"intermediate": 16}}
    return ModelSpec.model_validate({**shapes, **ffn, **changes})


@dataclass
class Run:
    """Arguments of `simulate`."""

    network: Network
    chip: Chip
    sequences: list[Sequence]
    rules: Rules
    seed: int

    def outcome(self, **changes: object) -> Outcome:
        given = {"rules": self.rules, "seed": self.seed, **changes}
        return simulate(self.network, self.chip, spread(self.network, self.chip), self.sequences, **given)


@st.composite
def compat_networks(draw: st.DrawFn) -> Network:
    experts = draw(st.sampled_from([0, 0, 3]))
    return gpt2_like(
        hidden=draw(st.integers(2, 20)),
        heads=1,
        ffn_width=draw(st.integers(2, 24)),
        layers=draw(st.integers(1, 3)),
        vocab=draw(st.integers(2, 20)),
        positions=16,
        activation=draw(st.sampled_from(["relu", "gelu"])),
        norm_first=draw(st.booleans()),
        experts=experts,
        top_k=draw(st.integers(1, 3)) if experts else 0,
        moe_every=draw(st.integers(1, 2)),
    )


@st.composite
def modern_networks(draw: st.DrawFn) -> Network:
    moe = {
        "experts": 4,
        "top_k": draw(st.integers(1, 3)),
        "intermediate": 12,
        "shared_intermediate": draw(st.sampled_from([0, 10])),
        "matrices": draw(st.sampled_from([2, 3])),
    }
    changes = {"moe": moe} if draw(st.booleans()) else {}
    shape = model(
        draw(st.sampled_from([GQA, MLA])),
        layers=draw(st.integers(1, 3)),
        vocab=draw(st.integers(2, 20)),
        learned_positions=draw(st.sampled_from([0, 16])),
        **changes,
    )
    return network_of(shape)


@st.composite
def chips(draw: st.DrawFn, several: bool) -> Chip:
    many = draw(st.integers(1, 3)) if several else 1
    return chip_of(
        tiles=draw(st.sampled_from([1, 3, 20])),
        tier_rows=draw(st.integers(3, 8)),
        tier_cols=draw(st.integers(3, 8)),
        digital_units=draw(st.integers(1, 3)),
        attention_units=draw(st.integers(1, 2)),
        costs=draw(st.sampled_from([RATES, PlaceholderCosts()])),
        chips=many,
        link=Link(0.05, 1.0, 1.0) if many > 1 else None,
        partial_sums=draw(st.sampled_from(["pool", "tile"])) if several else "pool",
        attention_split=draw(st.sampled_from(["sequence", "heads"])) if several else "sequence",
    )


@st.composite
def compat_runs(draw: st.DrawFn) -> Run:
    """Equal sequences, as the reference simulator has them."""
    sequence = Sequence(draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    network, chip = draw(compat_networks()), draw(chips(several=False))
    return Run(network, chip, [sequence] * draw(st.integers(1, 3)), COMPAT, draw(st.integers(0, 9)))


@st.composite
def physical_runs(draw: st.DrawFn) -> Run:
    some = st.builds(Sequence, st.integers(1, 3), st.integers(0, 3), st.integers(0, 5))
    network = draw(compat_networks() | modern_networks())
    sequences = draw(st.lists(some, min_size=1, max_size=3))
    return Run(network, draw(chips(several=True)), sequences, PHYSICAL, draw(st.integers(0, 9)))
