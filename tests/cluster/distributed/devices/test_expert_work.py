"""What routed experts on devices take does not hang on how executed steps were handed on."""

import numpy as np
import pytest

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.devices.expert_work import Work
from pimserve.cluster.distributed.devices.host_memory import HostState
from pimserve.cluster.distributed.devices.replica_experts import Experts
from pimserve.device_models.evaluate import shape_of
from pimserve.device_models.step import StepShape
from tests.cluster.distributed.devices.served import run

STEPS = np.arange(12)
TOKENS = 3 + STEPS % 5


def work_of(experts: Experts, shape: StepShape[IntArray], first_steps: IntArray, devices: int) -> Work:
    """What all devices of a replica, on one host, make of it."""
    turn = experts.draw(shape, first_steps)
    senders, receivers = experts.senders(range(devices)), experts.receivers(range(devices))
    turn.compute({(sender, receiver): turn.sent(sender, receiver) for sender in senders for receiver in receivers})
    return turn.work({device: turn.result(device) for device in receivers})


@pytest.mark.parametrize("slowdown", [1000, 1337])
@pytest.mark.parametrize(
    "name", ["exact", "sliced", "skewed", "placed", "mixed", "mixed-exact", "mixed-aimc", "hot", "hot-exact"]
)
def test_steps_one_by_one_and_together(name: str, slowdown: int) -> None:
    devices = run(name).devices
    document, keys = run(name).document, {"": [(0, device) for device in range(devices)]}
    state = HostState.compiled("here", document, keys, lockstep=False, audit_share=0)
    experts, plan = state.experts(0, slowdown), state.books[0].costs_at(slowdown, 0).plan
    assert experts is not None
    shapes = [np.array(shape_of(plan, tokens, 100 * tokens), np.int64) for tokens in TOKENS.tolist()]
    together = work_of(experts, StepShape(*np.stack(shapes, axis=1)), STEPS, devices)
    alone = [
        work_of(experts, StepShape(*shape[:, None]), STEPS[at : at + 1], devices) for at, shape in enumerate(shapes)
    ]
    np.testing.assert_array_equal(together.features, np.concatenate([one.features for one in alone]))
    assert together.own_fs == {device: sum(one.own_fs[device] for one in alone) for device in range(devices)}
    for device, energy in together.own_pj.items():
        assert energy == tuple(map(sum, zip(*(one.own_pj[device] for one in alone), strict=True)))
    costs = state.books[0].costs_at(slowdown, 0)
    expected = costs.experts_features(StepShape(*np.stack(shapes, axis=1)), STEPS)
    np.testing.assert_array_equal(together.features, expected)
