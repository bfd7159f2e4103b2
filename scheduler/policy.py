"""In which order requests are admitted that wait on a replica.

A policy gives each request a whole number; of those that have arrived the lowest is next, among equals the one that
arrived first. It sees what a real server knows when a request arrives. Packages add policies through the entry point
group `pimserve.policies`; each names a class, or a function without arguments that returns one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from operator import index
from typing import NamedTuple, Protocol

from pimserve.errors import InputError, shortened
from pimserve.loadgen.spec import PS_PER_S
from pimserve.plugin_calls import named
from pimserve.scheduler.config import FCFS, VTC, SchedulerSpec
from pimserve.scheduler.queue_classes import QueueClass

_WHERE = "scheduler.policy"
_NEVER_DUE_PS = 2**63  # later than any arrival and limit


class QueuedRequest(NamedTuple):
    """What is known of a request in the queue.

    Args:
        arrival_ps: when it arrived first, ps of simulated time; one that was preempted or moved keeps that.
        input_tokens: its prompt.
        predicted_tokens: what the predictor says of its output; 0 without `scheduler.prediction_error`.
        priority: that of its class, lower is earlier; 0 without one.
        tenant: who sent it; "" without a class.
        ttft_limit_ps: in which time its first token should come, ps; None: there is no limit.
        tenant_weight: how many parts of the service its tenant is due; 1 without a class.
    """

    arrival_ps: int
    input_tokens: int
    predicted_tokens: int
    priority: int
    tenant: str
    ttft_limit_ps: int | None
    tenant_weight: int = 1


class Policy(Protocol):
    """One method: which number a request has."""

    def key(self, request: QueuedRequest) -> int:
        """The number of that request, the same whenever it is asked; the lowest is admitted next."""


class ShortestPredictedFirst:
    """The request with the fewest predicted output tokens first, as in SSJF (Qiu et al., AIOps 2024)."""

    def key(self, request: QueuedRequest) -> int:
        """Predicted output tokens."""
        return request.predicted_tokens


class Priority:
    """The request with the lowest priority first, as vLLM's policy of that name; with ageing, nobody waits for ever.

    Waiting for `ageing_ps` is as good as one level. Of two that wait both age alike, so that their order is that of
    arrival + priority x ageing for good (Kleinrock's delay-dependent priorities, with one slope for all).

    Args:
        ageing_ps: ps of waiting that are worth one level; None: no time is.
    """

    def __init__(self, ageing_ps: int | None) -> None:
        self._ageing_ps = ageing_ps

    def key(self, request: QueuedRequest) -> int:
        """The priority, or since when one of priority 0 would have waited as long, ps."""
        if self._ageing_ps is None:
            return request.priority
        return request.arrival_ps + request.priority * self._ageing_ps


class EarliestDeadlineFirst:
    """The request whose first token is due first (Liu and Layland, J. ACM 20(1), 1973); those without a limit last."""

    def key(self, request: QueuedRequest) -> int:
        """When the first token is due, ps."""
        limit_ps = request.ttft_limit_ps
        return _NEVER_DUE_PS if limit_ps is None else request.arrival_ps + limit_ps


class PluginPolicy:
    """A policy of another package: whatever it does wrong is told with its name."""

    def __init__(self, name: str, entry: EntryPoint) -> None:
        """Raises InputError if it cannot be loaded, or is no policy."""
        self._name = f"policy {name!r} of {entry.value}"
        with named(_WHERE, self._name, "does not load"):
            self._policy: Policy = entry.load()()
        if not callable(getattr(self._policy, "key", None)):
            raise InputError(_WHERE, f"{self._name} has no method `key(request)`")

    def key(self, request: QueuedRequest) -> int:
        """Its number, if that is one."""
        with named(_WHERE, self._name, "failed to give a request its key"):
            key = self._policy.key(request)
        try:
            return index(key)
        except TypeError:
            message = f"{self._name} gave the key {shortened(repr(key))}; a whole number is needed"
            raise InputError(_WHERE, message) from None


def _shortest_predicted_first(spec: SchedulerSpec, _: Sequence[QueueClass]) -> Policy:
    if spec.prediction_error is None:
        raise InputError(
            "scheduler.prediction_error",
            "is not given: policy 'sjf' needs the error of its predictor (0: an oracle, which no server has)",
        )
    return ShortestPredictedFirst()


def _priority(spec: SchedulerSpec, classes: Sequence[QueueClass]) -> Policy:
    if len({each.priority for each in classes[1:]}) < 2:
        raise InputError(_WHERE, "'priority' needs classes of different priorities: workload.classes")
    return Priority(None if spec.ageing_s is None else max(1, round(spec.ageing_s * PS_PER_S)))


def _earliest_deadline_first(_: SchedulerSpec, classes: Sequence[QueueClass]) -> Policy:
    if all(each.ttft_limit_ps is None for each in classes):
        raise InputError(_WHERE, "'edf' needs a limit of TTFT: slo.ttft_s, or in slo of a class")
    return EarliestDeadlineFirst()


def _virtual_token_counter(_: SchedulerSpec, classes: Sequence[QueueClass]) -> None:
    if len({each.tenant for each in classes[1:]}) < 2:
        raise InputError(_WHERE, "'vtc' needs classes of different tenants: workload.classes")


PRIORITY = "priority"
_POLICIES: dict[str, Callable[[SchedulerSpec, Sequence[QueueClass]], Policy | None]] = {
    PRIORITY: _priority,
    "sjf": _shortest_predicted_first,
    "edf": _earliest_deadline_first,
    VTC: _virtual_token_counter,
}
BUILT_IN_POLICIES = frozenset({FCFS, *_POLICIES})
BLIND_TO_PRIORITY = BUILT_IN_POLICIES - {PRIORITY}


def make_policy(spec: SchedulerSpec, classes: Sequence[QueueClass]) -> Policy | None:
    """The policy of these settings; None for first come, first served and fair share by tenant, which need no numbers.

    Raises:
        InputError: there is no such policy, it does not load, or misses a setting.
    """
    if spec.policy == FCFS:
        return None
    if spec.policy in _POLICIES:
        return _POLICIES[spec.policy](spec, classes)
    registered = entry_points(group="pimserve.policies")
    if spec.policy in registered.names:
        return PluginPolicy(spec.policy, registered[spec.policy])
    known = ", ".join([FCFS, *_POLICIES, *sorted(registered.names)])
    raise InputError(_WHERE, f"unknown policy {spec.policy!r} (known: {known})")
