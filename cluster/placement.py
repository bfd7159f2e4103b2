"""A replica: which devices hold one copy of the model, what a step costs on them, and how much KV cache is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pimserve.cluster.interconnect import Interconnect
from pimserve.device_models.device import Device
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import (
    Parallelism,
    kv_bytes_per_token_per_device,
    operators_of,
    weight_bytes_per_device,
)
from pimserve.device_models.plan import CostPlan
from pimserve.errors import InputError


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of the model: its cost plan, and its KV cache's size in tokens."""

    plan: CostPlan
    kv_capacity_tokens: int
    weight_bytes_per_device: float


def place(
    model: ModelSpec,
    device: Device,
    split: Parallelism,
    interconnect: Interconnect,
    *,
    lm_head: bool = True,
    memory_utilization: float = 0.9,
    max_num_seqs: int = 0,
) -> Replica:
    """Put one copy of `model` on devices of one kind.

    Args:
        model: the model.
        device: the device; all of the replica are alike.
        split: how they share the model.
        interconnect: links between them.
        lm_head: whether the product with the vocabulary costs time.
        memory_utilization: share of the device memory that weights and KV cache may use.
        max_num_seqs: requests that may run at once; windowed layers reserve their window for each.

    Raises:
        InputError: the model does not divide over the devices, or does not fit them.
    """
    operators = operators_of(model, split, lm_head=lm_head)
    plan = device.compile(operators, split)
    plan = replace(plan, rows=plan.rows + interconnect.compile(operators, split))
    if model.kv_bytes_per_token <= 0:
        raise InputError("model.attention.window_every", "must be 2 or more: some layers must see the whole context")
    weights = weight_bytes_per_device(model, split)
    per_token = kv_bytes_per_token_per_device(model, split)
    share = per_token / model.kv_bytes_per_token  # of a request's cache that one device holds
    windows = model.kv_window_bytes_per_request * share * -(-max_num_seqs // split.data)
    usable = device.memory_bytes * memory_utilization
    left = usable - weights - windows
    tokens = int(left / per_token) * split.data if left > 0 else 0
    if tokens <= 0:
        held = f" and attention windows {windows / 1e9:.1f} GB" if windows else ""
        raise InputError(
            "cluster",
            f"{model.name} does not fit: weights take {weights / 1e9:.1f} GB{held} of each device's usable "
            f"{usable / 1e9:.1f} GB ({split.devices} x {device.spec.name}); "
            "use more devices, more tensor parallelism or a smaller model",
        )
    return Replica(plan, tokens, weights)
