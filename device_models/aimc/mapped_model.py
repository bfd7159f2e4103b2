"""A model, or parts of it, on chips: experts whole, or, where one is larger than a chip, cut over several.

Where experts are spread, each lies on one chip with all of its layers. One that does not fit is cut along its FFN's
width, as tensor parallelism cuts it (Megatron-LM, arXiv 1909.08053, section 3): columns of gate and up projection, rows
of the down projection, at the borders of crossbars. So weights, crossbars and products are as many as before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.mapping import Density, map_network
from pimserve.device_models.aimc.network import Network, network_of
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.spread import WHERE, Spreader
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import Part
from pimserve.errors import DoesNotFitError, InputError

# Each matrix and each of its chunks is placed by itself: seconds for DeepSeek-V3 (45 thousand, in 2.6 million).
_MOST_MATRICES, _MOST_CHUNKS = 2**17, 2**23
_MOST_OF_PAIRS = 2**11  # experts of a layer whose pairs have a density each; Switch-C has as many


@lru_cache(maxsize=4)  # whoever finds how many chips there must be asks for the same once more
def map_model(
    spec: AimcSpec, chip: Chip, model: ModelSpec, parts: frozenset[Part], density: Density | None = None
) -> PlacedNetwork:
    """Matrices of the model's parts, and where they are.

    Args:
        spec: the chips' description, which says how they share a model.
        chip: the chips.
        model: the model.
        parts: of it that are on the chips.
        density: of experts, as `map_network` has it.

    Raises:
        InputError: there are more matrices, or chunks of them, than can be mapped, or none; or they do not fit.
    """
    network = _network(spec, model, parts)
    experts = "routed_experts" in parts and model.moe is not None
    spread = spec.spread if experts else "layers"
    try:
        mapping = map_network(network, chip, spec.mapping, spread=spread, expert_density=density)
        return PlacedNetwork(network, chip, mapping)
    except DoesNotFitError as error:
        if error.least is not None or spread == "layers" or not experts:
            raise
        slicer = _Slicer(spec, chip, model, parts, network)
        if slicer.most == 1 or slicer.whole_fit:
            raise
    for slices in slicer.numbers(chip.chips):
        if slicer.fits(chip.chips, slices):
            sliced = slicer.network(slices)
            try:
                mapping = map_network(sliced, chip, spec.mapping, spread="experts", expert_density=density)
            except DoesNotFitError:  # chunks did not find a tile each
                continue
            return PlacedNetwork(sliced, chip, mapping)
    raise slicer.does_not_fit()


def slice_widths(width: int, slices: int, tier: int) -> tuple[int, ...]:
    """Widths of so many slices of an FFN, as even as its blocks of `tier` columns or rows allow, of which it has at
    least as many.
    """
    blocks = -(-width // tier)
    ends = [min(width, tier * (blocks * number // slices)) for number in range(slices + 1)]
    return tuple(end - begin for begin, end in pairwise(ends))


@dataclass(eq=False)
class _Slicer:
    """Numbers of chips that an expert may be cut over; `whole`: the network with whole ones."""

    spec: AimcSpec
    chip: Chip
    model: ModelSpec
    parts: frozenset[Part]
    whole: Network

    def __post_init__(self) -> None:
        assert self.model.moe is not None
        self._experts, self._width = self.model.moe.experts, self.model.moe.intermediate
        self._tier = max(self.chip.tier_rows, self.chip.tier_cols)
        self._networks: dict[int, Network] = {1: self.whole}

    @property
    def whole_fit(self) -> bool:
        """Whether each expert fits on a chip of its own."""
        return self._spreader(self._experts, 1).fits

    @cached_property
    def most(self) -> int:
        """Slices that an expert may have."""
        matrices = sum(len(ffn.matrices) for block in self.whole.blocks for (ffn,) in block.experts)
        return min(-(-self._width // self._tier), _MOST_MATRICES // matrices)

    def numbers(self, chips: int) -> list[int]:
        """Slices with which all of so many chips have experts, fewest first."""
        first = max(2, -(-chips // self._experts))
        return [slices for slices in range(first, min(self.most, chips) + 1) if chips % slices == 0]

    def network(self, slices: int) -> Network:
        """The network with experts that are cut."""
        if slices not in self._networks:
            widths = slice_widths(self._width, slices, self._tier)
            self._networks[slices] = _network(self.spec, self.model, self.parts, widths)
        return self._networks[slices]

    def fits(self, chips: int, slices: int) -> bool:
        """Whether so many chips have the room."""
        held = -(-self._experts * slices // chips) * self._tiers(slices)
        return held <= self._room and self._spreader(chips, slices).fits

    def does_not_fit(self) -> DoesNotFitError:
        """The error that says how much an expert takes, and what would do."""
        chip, least = self.chip, self._least
        some = "no number of such chips will do, but" if least is None else f"use {least} such chips,"
        return DoesNotFitError(
            WHERE,
            f"the network does not fit: an expert of all layers takes {self._tiers(1):,} tiers of {chip.tier_rows} x "
            f"{chip.tier_cols}, and a chip has room for {self._room:,}; cut over up to {self.most} chips each, "
            f"experts do not fit on {chip.chips} either; {some} more tiers per tile, more tiles, or a smaller model",
            least,
        )

    @cached_property
    def _least(self) -> int | None:
        """The fewest further chips that have the room."""
        found: int | None = None
        for slices in range(2, self.most + 1):
            groups = range(self.chip.chips // slices + 1, self._experts + 1)
            for chips in (number * slices for number in groups):
                if found is not None and chips >= found:
                    break
                if self.fits(chips, slices):
                    found = chips
        return found

    @property
    def _stacked(self) -> bool:
        return self.spec.mapping.strategy == "moe_separated"

    @property
    def _room(self) -> int:
        """Tiers of a chip for experts: stacks leave one of each tile free."""
        return self.chip.tiles * (self.chip.tiers - self._stacked)

    def _tiers(self, slices: int) -> int:
        """Tiers of the largest slice of an expert in all layers."""
        width = max(slice_widths(self._width, slices, self._tier))
        chip, tiers = self.chip, 0
        for block in self.whole.blocks:
            for ffn in block.experts[0] if block.experts else ():
                for matrix in ffn.matrices:
                    shape = self.whole.matrices[matrix]
                    cut = replace(shape, rows=width) if matrix == ffn.down else replace(shape, cols=width)
                    rows, cols = cut.grid(chip.tier_rows, chip.tier_cols)
                    tiers += rows * cols
        return tiers

    def _spreader(self, chips: int, slices: int) -> Spreader:
        chip = replace(self.chip, chips=chips)
        return Spreader(self.network(slices), chip, stacked=self._stacked, spread="experts")


@lru_cache(maxsize=4)  # of all numbers of chips that are tried
def _network(spec: AimcSpec, model: ModelSpec, parts: frozenset[Part], expert_widths: tuple[int, ...] = ()) -> Network:
    moe = model.moe if "routed_experts" in parts else None
    matrices = model.layers
    if moe is not None:
        matrices += model.moe_layers * moe.experts * moe.matrices * max(1, len(expert_widths))
    if matrices > _MOST_MATRICES:
        message = f"{model.name} has over {matrices:,} matrices; at most {_MOST_MATRICES:,} can be mapped on crossbars"
        raise InputError("model", message)
    if moe is not None and spec.mapping.strategy == "greedy_top2" and moe.experts > _MOST_OF_PAIRS:
        message = f"greedy_top2 takes at most {_MOST_OF_PAIRS:,} experts (got {moe.experts:,})"
        raise InputError("cluster.device.mapping.strategy", message)
    network = network_of(model, spec.kv_bits, parts, expert_widths)
    if not network.matrices:
        raise InputError("model", f"{model.name} has no {' or '.join(sorted(parts))} to put on {spec.name}")
    if (chunks := network.tiers(spec.tier_rows, spec.tier_cols)) > _MOST_CHUNKS:
        raise InputError(
            "model",
            f"{model.name} takes {chunks:,} crossbars of {spec.tier_rows} x {spec.tier_cols}; at most "
            f"{_MOST_CHUNKS:,} can be mapped",
        )
    return network
