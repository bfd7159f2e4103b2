"""Where disaggregation cannot win: budgets, intensities and penalties of arXiv 2602.09721, as far as they are known.

The paper's table of upper bounds of HFU (hardware FLOPS utilisation) by model and GPU is not reproduced: the bandwidths
behind it are not known here, and `HfuBound`, the only closed form, has the model in it by the width of an expert alone,
while the table's entries for one GPU and width differ little where that form makes them differ much.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pimserve.cluster.scenario.dispatch import hit_probability
from pimserve.cluster.validation.disaggregation_formula import Count, Formula, NotNegative, Positive

_AtLeastOne = Annotated[float, Field(ge=1, le=1e6)]
_Fraction = Annotated[float, Field(ge=1e-6, le=1)]
_Experts = Annotated[int, Field(ge=1, le=10_000)]


class StageBudget(Formula):
    """Time of a stage in one layer under a TPOT objective, us.

    `accepted_tokens`: of a step, with speculative decoding; `fixed_ms`: of a step outside the layers;
    `stages`: that a micro-batch passes one after the other in a layer.
    """

    tpot_ms: Positive
    layers: Count
    accepted_tokens: _AtLeastOne = 1.7
    fixed_ms: NotNegative = 15.0
    stages: Count = 3

    def value(self) -> float:
        """t_B, from TPOT x accepted = t_g + layers x stages x t_B; 0 where nothing is left."""
        left_ms = self.tpot_ms * self.accepted_tokens - self.fixed_ms
        return max(0.0, left_ms) * 1e3 / (self.layers * self.stages)


class StageMargin(Formula):
    """By how much stages keep their budget and each other busy: at least 1 where all conditions hold.

    The conditions: no stage above the budget; 2 t_a >= t_f + t_c; 2 t_f >= t_a + t_c.
    """

    attention_us: Positive
    ffn_us: Positive
    transfer_us: NotNegative
    budget_us: Positive

    def value(self) -> float:
        """The least of the sides over each other."""
        return min(
            self.budget_us / max(self.attention_us, self.ffn_us, self.transfer_us),
            2 * self.attention_us / (self.ffn_us + self.transfer_us),
            2 * self.ffn_us / (self.attention_us + self.transfer_us),
        )


class FfnIntensity(Formula):
    """FLOPs per byte of 8-bit expert weights at an FFN device.

    `scale_out_tokens`, `scale_up_tokens`: that a device gets in a stage's budget over the network and from its node. A
    token that comes to a node over the network is handed on there for each of its experts that the node holds.
    """

    scale_out_tokens: Positive
    scale_up_tokens: Positive
    top_k: Count
    experts: Count
    ffn_nodes: Count
    devices_per_node: Count

    def value(self) -> float:
        """2 min(B_out max(1, K / N_F), B_up) / ceil(E / (N_F g))."""
        arriving = self.scale_out_tokens * max(1.0, self.top_k / self.ffn_nodes)
        held = -(-self.experts // (self.ffn_nodes * self.devices_per_node))
        return 2 * min(arriving, self.scale_up_tokens) / held


class HfuBound(Formula):
    """Upper bound of HFU at an FFN device that its links feed: no number of FFN devices lifts it (the dead zone).

    A vector of h elements comes in 8 and leaves in 16 bit, 3 h bytes, and is worth 6 h `expert_width` FLOPs at one
    expert. That `M` of the paper's form is the width of an expert is how it is read here: so units and bytes agree.
    """

    scale_up_gb_per_s: Positive
    expert_width: Count
    tflop_per_s: Positive

    def value(self) -> float:
        """2 B M / FLOPS, at most 1."""
        return min(1.0, 2 * self.scale_up_gb_per_s * 1e9 * self.expert_width / (self.tflop_per_s * 1e12))


class ImbalancePenalty(Formula):
    """Step time with imbalanced experts over that without, experts on devices of their own.

    `imbalance`: FFN time of the busiest over the mean.
    """

    imbalance: _AtLeastOne

    def value(self) -> float:
        """s."""
        return self.imbalance


class SharedImbalancePenalty(ImbalancePenalty):
    """The same with expert parallelism, where each device has attention too and its batch gives way.

    `attention_per_ffn`: l, attention over FFN devices of the disaggregated system that it is compared with.
    """

    attention_per_ffn: Positive

    def value(self) -> float:
        """(l + 1) / (l + 1 / s)."""
        return (self.attention_per_ffn + 1) / (self.attention_per_ffn + 1 / self.imbalance)


class GainOverSharedDevices(Formula):
    """Upper bound of the throughput of disaggregation over plain expert parallelism: below 1 it cannot win.

    `hfu_bound`: of the first; `shared_hfu`: what the second reaches. Penalties of imbalance come on top of both.
    """

    hfu_bound: _Fraction
    shared_hfu: _Fraction
    attention_per_ffn: Positive = 1.0
    imbalance: _AtLeastOne = 1.0

    def value(self) -> float:
        """Ratio of the utilisations, and of the penalties."""
        apart = ImbalancePenalty(imbalance=self.imbalance).value()
        shared = SharedImbalancePenalty(imbalance=self.imbalance, attention_per_ffn=self.attention_per_ffn).value()
        return self.hfu_bound / self.shared_hfu * shared / apart


class ExpertNodeHit(Formula):
    """Probability that a token goes to a node with its share of the experts (AIConfigurator)."""

    experts: _Experts
    top_k: _Experts
    expert_nodes: _Experts

    @model_validator(mode="after")
    def _picks_and_nodes_fit(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k must be at most experts, {self.experts} (got {self.top_k})")
        if self.experts % self.expert_nodes:
            raise ValueError(f"expert_nodes must divide experts, {self.experts} (got {self.expert_nodes})")
        return self

    def value(self) -> float:
        """1 - C(E - E / N, K) / C(E, K)."""
        return hit_probability(self.experts, self.top_k, self.experts // self.expert_nodes)
