"""What a client can ask of `SchedulerService`: of a run's replicas, requests and devices, and changes to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pimserve.cluster.client import answers
from pimserve.cluster.client.calls import Call, simulated_s_of
from pimserve.v1 import scheduler_pb2 as sched


def replicas(run_id: str) -> Call[answers.Replicas]:
    """Queue and batch of every replica of a run that goes on."""
    return Call(sched.GetReplicasRequest(run_id=run_id), partial(answers.read, answers.Replicas))


def request(run_id: str, number: int) -> Call[answers.Request]:
    """One request's life."""
    asked = sched.DescribeRequestRequest(run_id=run_id, request=number)
    return Call(asked, partial(answers.read, answers.Request))


def latencies(run_id: str, percentiles: Sequence[float] = ()) -> Call[answers.Latencies]:
    """Percentiles so far (default: 50, 90, 99), and SLO attainment."""
    asked = sched.GetLatenciesRequest(run_id=run_id, percentiles=percentiles)
    return Call(asked, answers.latencies)


def ledgers(run_id: str) -> Call[answers.Ledgers]:
    """What the devices of each replica have done."""
    return Call(sched.GetLedgersRequest(run_id=run_id), partial(answers.read, answers.Ledgers))


def devices(run_id: str, replicas: Sequence[int] = ()) -> Call[answers.Devices]:
    """What each device of these replicas, or of all, has done, sent and received; of a run whose devices are actors."""
    asked = sched.GetDevicesRequest(run_id=run_id, replicas=replicas)
    return Call(asked, partial(answers.read, answers.Devices))


def placement(run_id: str) -> Call[answers.Placement]:
    """Which devices each replica has."""
    return Call(sched.GetPlacementRequest(run_id=run_id), partial(answers.read, answers.Placement))


def change_scheduler(
    run_id: str,
    *,
    router: str | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
) -> Call[float]:
    """Change settings for the rest of the run; returns since which simulated time they hold, s."""
    asked = sched.ChangeSchedulerRequest(
        run_id=run_id, router=router, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
    )
    return Call(asked, simulated_s_of)


def scale_rate(run_id: str, factor: float) -> Call[float]:
    """Let requests come `factor` times as fast from now on; returns since which simulated time, s."""
    return Call(sched.ScaleRateRequest(run_id=run_id, factor=factor), simulated_s_of)


def inject(
    run_id: str, input_tokens: Sequence[int], output_tokens: Sequence[int], delay_s: float = 0.0
) -> Call[answers.Injected]:
    """Add requests that arrive `delay_s` simulated seconds from now."""
    asked = sched.InjectRequestsRequest(
        run_id=run_id, input_tokens=input_tokens, output_tokens=output_tokens, delay_s=delay_s
    )
    return Call(asked, partial(answers.read, answers.Injected))
