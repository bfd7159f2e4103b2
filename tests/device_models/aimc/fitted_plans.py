"""Models on AIMC chips, and figures of their plans."""

from functools import cache
from typing import Any

from pimserve.device_models.aimc.aimc import Aimc
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import Demand, Fitted
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.operators import Parallelism
from pimserve.device_models.plan import FS_PER_S, CostPlan
from pimserve.device_models.registry import load_device


def aimc(preset: str = "aimc-realistic", **changes: Any) -> Aimc:
    device = load_device({"preset": preset, **changes})
    assert isinstance(device, Aimc)
    return device


def fitted(device: Aimc, model: str = "mixtral-8x7b", chips: int = 6, **demand: Any) -> Fitted:
    return device.fit(Demand(load_model(model), Parallelism(1, chips, chips), **demand))


@cache
def realistic() -> Fitted:
    return fitted(aimc())


def decode_s(plan: CostPlan, requests: int, context: int) -> float:
    """A step of `requests` decoding requests with `context` tokens each."""
    return evaluate(plan, shape_of(plan, requests, requests * context)).duration_fs / FS_PER_S


def decode_attention_pj(plan: CostPlan) -> int:
    return sum(term.dram_per_token for term in plan.decode)
