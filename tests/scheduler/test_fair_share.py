"""Fair share by tenant: nobody gets far ahead of another who waits too, and nobody saves up what was not asked for."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.plan import CostPlan
from pimserve.errors import InputError
from pimserve.loadgen.request_classes import ClassSpec
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.attention_dp_spec import AttentionDpBalanceSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.requests import NEVER
from pimserve.scheduler.simulation import Served
from tests.examples import examples

from .pools import simulate_on
from .test_simulation import PLAN

TENANTS = (ClassSpec(name="chat", tenant="a"), ClassSpec(name="batch", tenant="b"), ClassSpec(name="more", tenant="a"))
BLOCKS, BLOCK_SIZE, LONGEST = 12, 16, 60
Request = tuple[float, int, int, int]  # arrival s, input, output, class
ONE_AT_A_TIME = {"max_num_seqs": 1}


def weighing(weights: tuple[int, int]) -> tuple[ClassSpec, ...]:
    """The same, of tenants "a" and "b" with these weights."""
    of = dict(zip("ab", weights, strict=True))
    return tuple(each.model_copy(update={"tenant_weight": of[each.owner]}) for each in TENANTS)


def serve(
    requests: list[Request],
    *,
    plan: CostPlan = PLAN,
    max_time_s: float | None = None,
    classes: tuple[ClassSpec, ...] = TENANTS,
    **spec: Any,
) -> Served:
    arrival, inputs, outputs, class_ids = (np.array(column) for column in zip(*requests, strict=True))
    made = Workload(
        np.rint(arrival * 1e12).astype(np.int64), inputs, outputs, None, None, "", 0, {},
        classes=classes, class_ids=class_ids.astype(np.int8),
    )  # fmt: skip
    return simulate_on(
        plan,
        workload=made,
        spec=SchedulerSpec(**{"policy": "vtc", "block_size": BLOCK_SIZE, **spec}),
        kv_capacity_tokens=BLOCKS * BLOCK_SIZE,
        device_kv_bytes_per_token=1000,
        max_model_len=BLOCKS * BLOCK_SIZE,
        max_time_s=max_time_s,
    )


def order(requests: list[Request], **spec: Any) -> list[int]:
    """Requests by the time at which they were admitted."""
    return np.argsort(serve(requests, **spec).table["first_scheduled_ps"], kind="stable").tolist()


def test_tenants_take_turns_however_many_requests_one_sends() -> None:
    requests = [(0.0, 5, 5, 1)] * 5 + [(0.001, 5, 5, 2)] * 2
    assert order(requests, **ONE_AT_A_TIME) == [0, 5, 1, 6, 2, 3, 4]
    assert order(requests, policy="fcfs", **ONE_AT_A_TIME) == list(range(7))


def test_classes_of_one_tenant_share_its_part() -> None:
    requests = [(0.0, 5, 5, 1), (0.0, 5, 5, 3), (0.0, 5, 5, 1), (0.001, 5, 5, 2), (0.001, 5, 5, 2)]
    assert order(requests, **ONE_AT_A_TIME) == [0, 3, 1, 4, 2]


def test_who_comes_back_has_saved_up_nothing() -> None:
    """The first tenant had five requests alone; from 0.5 s on both wait, and take turns."""
    alone = [(0.0, 5, 5, 1)] * 5
    both = [(0.5, 5, 5, 1)] * 3 + [(0.5, 5, 5, 2)] * 3
    assert order([*alone, *both], **ONE_AT_A_TIME) == [0, 1, 2, 3, 4, 5, 8, 6, 9, 7, 10]


def test_who_comes_back_is_lifted_to_the_least_of_those_who_wait() -> None:
    """Requests without a class, a third tenant, come when "b" has had 15 and "a" 30, 15 of that from who runs."""
    waiting = [(0.0, 5, 5, 1), (0.0, 5, 5, 1), (0.0, 5, 5, 2), (0.0, 5, 5, 2)]
    late = [(0.11, 5, 5, 0), (0.11, 5, 5, 0)]
    assert order([*waiting, *late], **ONE_AT_A_TIME) == [0, 2, 1, 3, 4, 5]


def test_weights_say_what_a_token_is_worth() -> None:
    """Two prompts of 12 and one output token against one of 4 and 11."""
    requests = [(0.0, 12, 1, 1), (0.0, 4, 11, 2), (0.001, 12, 1, 1), (0.001, 4, 11, 2)]
    assert order(requests, **ONE_AT_A_TIME) == [0, 1, 2, 3]
    assert order(requests, input_token_weight=4, output_token_weight=1, **ONE_AT_A_TIME) == [0, 1, 3, 2]


def test_who_weighs_twice_as_much_gets_twice_as_much() -> None:
    """15 of a request is 5 to "a", of weight 3, and 15 to "b"."""
    requests = [(0.0, 5, 5, 1)] * 6 + [(0.0, 5, 5, 2)] * 6
    assert order(requests, classes=weighing((3, 1)), **ONE_AT_A_TIME) == [0, 6, 1, 2, 3, 7, 4, 5, 8, 9, 10, 11]


def test_another_tenant_becomes_next_while_all_decode() -> None:
    """ "b" gains twice as much in a step, and has passed "a" after 15: then a short prompt fits, and not a long one."""
    requests = [(0.0, 40, 30, 1), (0.0, 5, 60, 2), (0.0, 5, 60, 2), (0.005, 130, 2, 2), (0.006, 10, 2, 1)]
    first_ps = serve(requests, max_num_seqs=8).table["first_scheduled_ps"]
    assert first_ps[4] == 160 * 10**9
    assert first_ps[3] > first_ps[4]


def test_a_tenant_comes_back_when_it_sends_not_when_there_is_room() -> None:
    """A third one sends at 0.105 s, while two run and both have as much; it is owed what they get until one ends."""
    running, waiting = [(0.0, 5, 30, 1), (0.0, 5, 60, 2)], [(0.0, 5, 5, 1), (0.0, 5, 5, 2)]
    assert order([*running, *waiting, (0.105, 5, 5, 0), (0.105, 5, 5, 0)], max_num_seqs=2) == [0, 1, 4, 5, 2, 3]


def test_a_tenant_comes_back_when_it_sends_though_its_group_has_no_room_and_prompts_are_held_back() -> None:
    """Two groups: prompts of the second one are held back until one of the first has a place, at 100 ms.

    In the first, "a" waits from 25 ms on, and "b" from 50 ms on: lifted to what "a" has by then, of which a request
    decodes until 100 ms, it has less there.
    """
    running = [(0.0, 5, 10, 1), (0.0, 5, 60, 0), (0.0, 5, 60, 0)]
    waiting = [(0.022, 5, 5, 0), (0.025, 5, 5, 1), (0.03, 5, 5, 0), (0.05, 5, 5, 2)]
    groups = replace(PLAN, devices=2, data_parallel=2)
    rule = AttentionDpBalanceSpec(timeout_iters=20, batching_wait_iters=0)
    served = serve([*running, *waiting], plan=groups, max_num_seqs=2, attention_dp_balance=rule)
    assert (served.table["first_scheduled_ps"] / 1e9).tolist() == [0, 0, 0, 100, 150, 150, 100]


def test_who_comes_back_from_host_memory_is_the_one_admitted_last() -> None:
    """ "b" had 115 when its request needed a seventh block, and "a" 158 when it ended, at 0.4 s; then "b" decodes on.

    Requests without a class, a third tenant, come soon after, when nobody waits: with what "b" has, not "a", they both
    go before the one of "a" that comes next.
    """
    long, late = [(0.0, 79, 40, 2), (0.0, 78, 40, 1)], [(0.42, 10, 5, 0), (0.42, 10, 5, 0), (0.421, 10, 5, 1)]
    swap = {"preemption": "swap", "swap_gb_per_s": 1, "swap_space_gb": 1}
    served = serve([*long, *late], max_num_seqs=2, **swap)
    assert served.table["swaps"].tolist() == [1, 0, 0, 0, 0]
    assert np.argsort(served.table["first_scheduled_ps"][2:]).tolist() == [0, 1, 2]


REQUESTS = st.lists(st.tuples(st.integers(1, LONGEST // 2), st.integers(1, LONGEST // 2)), min_size=8, max_size=25)


@examples(60)
@given(
    st.tuples(REQUESTS, REQUESTS),
    REQUESTS,
    st.integers(0, 400),
    st.integers(1, 8),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from([(1, 1), (2, 1), (2, 5)]),
)
def test_two_backlogged_tenants_get_service_within_the_bound(
    backlogs: tuple[list[tuple[int, int]], list[tuple[int, int]]],
    others: list[tuple[int, int]],
    late_ms: int,
    max_num_seqs: int,
    fractions: tuple[float, float],
    weights: tuple[int, int],
) -> None:
    """In any time in which both have requests that wait, they get service within 2U of each other.

    U = max(input weight x longest prompt, output weight x tokens of the KV cache) (theorem 4.4 of Sheng et al.), where
    what is admitted fits in the cache to its end. A third tenant comes and goes. Service counts over tenants' weights.
    """
    sent = [(0.0, *request, 1) for request in backlogs[0]]
    sent += [(late_ms / 1000, *request, 2) for request in backlogs[1]]
    sent += [(0.1 * number, *request, 0) for number, request in enumerate(others)]
    requests = sorted(sent, key=lambda request: request[0])
    spec = {"kv_admission": "oracle", "max_num_seqs": max_num_seqs, "classes": weighing(weights)}
    table = serve(requests, **spec).table.structured()
    ends_ps = min(table["first_scheduled_ps"][table["class_id"] == tenant].max() for tenant in (1, 2))
    begins_ps = late_ms * 10**9
    if ends_ps <= begins_ps:
        return
    stops = [begins_ps + round(fraction * (ends_ps - begins_ps)) for fraction in sorted(fractions)]
    service = [served_by(serve(requests, max_time_s=(stop + 1) / 1e12, **spec)) for stop in stops]
    gained = service[1] - service[0]
    most = max(LONGEST // 2, 2 * BLOCKS * BLOCK_SIZE) / min(weights)
    assert abs(gained[1] / weights[0] - gained[2] / weights[1]) <= 2 * most


def served_by(served: Served) -> np.ndarray:
    """Service of classes 0 to 2 so far: prompts that were admitted, and twice the tokens of outputs."""
    table = served.table.structured()
    prompts = np.where(table["first_scheduled_ps"] == NEVER, 0, table["input_tokens"])
    return np.bincount(table["class_id"], prompts + 2 * table["emitted_tokens"], minlength=3)


def test_there_must_be_tenants_to_share() -> None:
    made = Workload(np.array([0]), np.array([5]), np.array([5]), None, None, "", 0, {}, classes=TENANTS[::2],
                    class_ids=np.array([1], np.int8))  # fmt: skip
    with pytest.raises(InputError) as refused:
        simulate_on(PLAN, workload=made, spec=SchedulerSpec(policy="vtc"), kv_capacity_tokens=160, max_model_len=160)
    assert str(refused.value) == "scheduler.policy: 'vtc' needs classes of different tenants: workload.classes"
