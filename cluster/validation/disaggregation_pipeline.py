"""Micro-batches that alternate between attention and experts (MegaScale-Infer, arXiv 2504.02263).

A layer takes a micro-batch T_a at attention, T_e at the experts, and T_c over the link each way; T_f = max(T_a, T_e).
With m micro-batches and L layers the paper has

    T = (T_a + T_e + 2 T_c) + T_f (m L - 1)    where m >= 2 (1 + T_c / T_f) and T_c < T_f.

Here T is exact with and without the condition: micro-batches that are alike follow each other at the pace of the
slowest station, P = max(T_a, T_e, T_c), and each begins a layer after its own round trip, or after all others if that
is later:

    T = R + max(R, m P) (L - 1) + P (m - 1)    with the round trip R = T_a + T_e + 2 T_c.

Where the condition holds, T_f is the pace and the two are one.
"""

from __future__ import annotations

from math import ceil, isclose
from typing import Annotated

from pydantic import Field

from pimserve.cluster.validation.disaggregation_formula import Count, Formula, NotNegative, Positive

_Layers = Annotated[int, Field(ge=1, le=10**6)]
_MicroBatches = Annotated[int, Field(ge=1, le=10**6)]
_Utilisation = Annotated[float, Field(ge=1e-6, le=1)]
_ROUNDING = 1e-12


class StepTime(Formula):
    """Time of a decode step of all micro-batches, us."""

    attention_us: Positive
    experts_us: Positive
    transfer_us: NotNegative
    layers: _Layers
    micro_batches: _MicroBatches

    def value(self) -> float:
        """R + max(R, m P) (L - 1) + P (m - 1)."""
        trip = self.attention_us + self.experts_us + 2 * self.transfer_us
        pace = max(self.attention_us, self.experts_us, self.transfer_us)
        return trip + max(trip, self.micro_batches * pace) * (self.layers - 1) + pace * (self.micro_batches - 1)

    def note(self) -> str:
        """What the paper's form gives where it is not exact."""
        theirs = self.paper_us()
        return "" if isclose(theirs, self.value()) else f"outside its condition, the paper's form gives {theirs:.6g}"

    def paper_us(self) -> float:
        """(T_a + T_e + 2 T_c) + T_f (m L - 1)."""
        trip = self.attention_us + self.experts_us + 2 * self.transfer_us
        return trip + max(self.attention_us, self.experts_us) * (self.micro_batches * self.layers - 1)


class MicroBatchGain(Formula):
    """Throughput with `micro_batches` over that with `baseline_micro_batches`, all of one size.

    `transfer_share`: T_c / T_f. `balance`: the faster of attention and experts over the slower.
    """

    transfer_share: NotNegative
    layers: _Layers
    micro_batches: _MicroBatches
    baseline_micro_batches: _MicroBatches
    balance: Annotated[float, Field(ge=1e-6, le=1)] = 1.0

    def value(self) -> float:
        """Micro-batches per time; min(1 + T_c / T_f, 1.5) for 3 over 2 in many layers that are balanced."""
        few, many = self._step_us(self.baseline_micro_batches), self._step_us(self.micro_batches)
        return self.micro_batches / self.baseline_micro_batches * few / many

    def _step_us(self, micro_batches: int) -> float:
        return StepTime(
            attention_us=1.0,
            experts_us=self.balance,
            transfer_us=self.transfer_share,
            layers=self.layers,
            micro_batches=micro_batches,
        ).value()


class LeastMicroBatches(Formula):
    """Fewest micro-batches that hide the transfers of balanced stations; `transfer_share`: T_c / T_f."""

    transfer_share: Annotated[float, Field(ge=0, lt=1)]

    def value(self) -> float:
        """m >= 2 (1 + T_c / T_f)."""
        return ceil(2 * (1 + self.transfer_share) - _ROUNDING)


class TransferTime(Formula):
    """Time of one way of a micro-batch, us: the slower of what an attention device and an expert device pass.

    `attention_tokens` of a micro-batch on an attention node of `attention_devices`, `expert_tokens` on an expert node;
    `utilisation`: of the network cards at such messages.
    """

    attention_tokens: Count
    expert_tokens: Count
    hidden: Count
    top_k: Count
    attention_devices: Count
    expert_devices: Count
    attention_gb_per_s: Positive
    expert_gb_per_s: Positive
    attention_utilisation: _Utilisation = 1.0
    expert_utilisation: _Utilisation = 1.0
    bytes_per_element: Positive = 2.0

    def value(self) -> float:
        """max(b_a h K / tp_a / (W_a Util), b_e h / tp_e / (W_e Util)), in bytes."""
        row_bytes = self.hidden * self.bytes_per_element
        sent = self.attention_tokens * self.top_k * row_bytes / self.attention_devices
        received = self.expert_tokens * row_bytes / self.expert_devices
        return max(
            sent / (self.attention_gb_per_s * self.attention_utilisation * 1e3),
            received / (self.expert_gb_per_s * self.expert_utilisation * 1e3),
        )


class AttentionNodes(Formula):
    """Attention nodes that keep pace with one expert node for each expert.

    `attention_us_per_token`, `expert_us_per_token`: the slopes of T_a and T_e over the tokens of a node.
    """

    attention_us_per_token: Positive
    expert_us_per_token: Positive
    experts: Count
    top_k: Count

    def value(self) -> float:
        """k_1 E / (k_3 K)."""
        return self.attention_us_per_token * self.experts / (self.expert_us_per_token * self.top_k)
