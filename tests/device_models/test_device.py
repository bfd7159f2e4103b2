"""What every kind of device has that runs operators."""

import pytest

from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import Demand, DeviceSpec, OperatorDevice
from pimserve.device_models.operators import Parallelism, weight_bytes_per_device
from pimserve.device_models.plan import CostPlan
from pimserve.errors import InputError


class Plainest(OperatorDevice):
    """A kind that states what it must, and nothing else."""

    units = ("abacus",)
    memory_bytes = 100e9

    def __init__(self) -> None:
        self.spec = DeviceSpec.model_construct(name="abacus", kind="abacus", assumptions=(), caveats=())

    def compile(self, operators: object, split: Parallelism) -> CostPlan:
        return CostPlan(1, split.data, self.units, (), (), (), None)


def test_a_kind_that_states_the_least_has_memory_for_weights_and_cache() -> None:
    device, model = Plainest(), load_model("llama-3.1-8b")
    assert device.key_figures == pytest.approx({"memory_gb": 100}, rel=1e-12)
    assert device.roofs(model) == ()
    split = Parallelism(1, 1, 1)
    weights, per_token = weight_bytes_per_device(model, split), model.kv_bytes_per_token
    for share, reserve_gb in ((0.9, None), (0.5, None), (0.9, 20.0)):
        fitted = device.fit(Demand(model, split, memory_utilization=share, reserve_gb=reserve_gb))
        assert fitted.kv_capacity_tokens == int((100e9 * share - weights - (reserve_gb or 0) * 1e9) / per_token)
        assert fitted.reserved_bytes_per_device == (reserve_gb or 0) * 1e9
    with pytest.raises(InputError, match=r"does not fit: .*activations and the like 80\.0 GB"):
        device.fit(Demand(model, split, reserve_gb=80))
