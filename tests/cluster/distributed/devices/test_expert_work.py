"""What routed experts on devices take does not hang on how executed steps were handed on."""

import numpy as np
import pytest

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.devices.expert_work import Experts, Work
from pimserve.cluster.distributed.devices.host_memory import HostState
from tests.cluster.distributed.devices.served import run

STEPS = np.arange(12)
TOKENS = 3 + STEPS % 5


def work_of(experts: Experts, some: IntArray) -> Work:
    turn = experts.draw(TOKENS[some], STEPS[some], np.ones(len(some), np.int64))
    turn.compute({(sender, receiver): turn.sent(sender, receiver) for sender in range(4) for receiver in range(4)})
    return turn.work({device: turn.result(device) for device in range(4)})


@pytest.mark.parametrize("slowdown", [1000, 1337])
@pytest.mark.parametrize("name", ["exact", "sliced", "skewed", "placed"])
def test_steps_one_by_one_and_together(name: str, slowdown: int) -> None:
    document, keys = run(name).document, {"": [(0, device) for device in range(4)]}
    state = HostState.compiled("here", document, keys, lockstep=False, audit_share=0)
    experts = state.experts(0, slowdown)
    assert experts is not None
    together, alone = work_of(experts, STEPS), [work_of(experts, STEPS[at : at + 1]) for at in range(len(STEPS))]
    np.testing.assert_array_equal(together.features, np.concatenate([one.features for one in alone]))
    assert together.own_fs == {device: sum(one.own_fs[device] for one in alone) for device in range(4)}
    for device, energy in together.own_pj.items():
        assert energy == tuple(map(sum, zip(*(one.own_pj[device] for one in alone), strict=True)))
