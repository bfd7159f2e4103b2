"""A scenario made ready to run, once: all that runs, shows or checks it is handed the same `Prepared`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, partial

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.pools import link_of, place_pool, routing_of
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError, together, tried
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.traces import trace_digest
from pimserve.scheduler.faults import FaultSpec
from pimserve.scheduler.handover import Link
from pimserve.scheduler.load_shedding import check_shedding
from pimserve.scheduler.queue_classes import queue_classes
from pimserve.scheduler.router import make_router
from pimserve.scheduler.run_requests import check_autoscaling, check_kv_caches, check_together


@dataclass(frozen=True)
class Prepared:
    """A scenario whose model was fitted on its devices.

    Args:
        scenario: what runs.
        model: served.
        pools: of replicas, in the order in which these are numbered: one, or prefill and decode.
        routing: how tokens choose experts.
    """

    scenario: Scenario
    model: ModelSpec
    pools: tuple[PlacedPool, ...]
    routing: Routing

    @property
    def replicas(self) -> int:
        """In all pools."""
        return sum(pool.replicas for pool in self.pools)

    @property
    def pool_of_replica(self) -> tuple[PlacedPool, ...]:
        """The pool of each replica, by number."""
        return tuple(pool for pool in self.pools for _ in pool.numbers)

    @property
    def kv_blocks(self) -> list[int]:
        """In the KV cache of each replica, by number."""
        block_size = self.scenario.scheduler.block_size
        return [pool.kv_blocks(block_size) for pool in self.pool_of_replica]

    @property
    def kv_tokens(self) -> int:
        """What the KV caches of all replicas hold, if windows take none."""
        return sum(pool.kv_tokens(self.scenario.scheduler.block_size) * pool.replicas for pool in self.pools)

    @property
    def device(self) -> str:
        """What its devices are, of all pools."""
        return " + ".join(dict.fromkeys(pool.label for pool in self.pools))

    @property
    def frontend_ps(self) -> int:
        """Time of a request in front of the scheduler, which TTFT and E2E hold."""
        return self.pools[0].plan.frontend_ps

    @property
    def objectives(self) -> Objectives:
        """Limits of its requests, by class."""
        return Objectives.of(self.scenario.slo, self.scenario.workload.classes)

    @property
    def faults(self) -> FaultSpec:
        """The faults that the scenario asks for, none by default."""
        return self.scenario.faults or FaultSpec()

    @cached_property
    def trace_sha256(self) -> str | None:
        """sha256 of the trace that it replays; None without one.

        Raises:
            InputError: the trace cannot be read.
        """
        trace = self.scenario.workload.trace
        return None if trace is None else trace_digest(trace)

    @cached_property
    def digest(self) -> str:
        """Digest of the scenario (`scenario_digest`)."""
        return _digest(self.scenario, self.trace_sha256)

    @cached_property
    def link(self) -> Link | None:
        """The way of KV caches from the first pool to the second; None with one.

        Raises:
            InputError: the pools do not keep them in the same format.
        """
        return link_of(self.scenario, self.model, self.pools) if len(self.pools) > 1 else None

    @property
    def max_model_len(self) -> int:
        """What the scenario asks for, else the most that the model takes, tokens. The KV cache may hold less.

        Raises:
            InputError: it asks for more than the model or the KV cache takes.
        """
        wanted, most = self.scenario.scheduler.max_model_len, self.model.max_model_len_tokens
        if wanted is None:
            return most
        if wanted > most:
            raise InputError("scheduler.max_model_len", f"{wanted} exceeds the {most} tokens of {self.model.name}")
        if wanted > self._kv_tokens:
            raise InputError(
                "scheduler.max_model_len",
                f"{wanted} exceeds the {self._kv_tokens} tokens that the KV cache holds for a request",
            )
        return wanted

    @property
    def longest_request(self) -> int:
        """Tokens that a request may have: `max_model_len`, or what the KV cache holds.

        Raises:
            InputError: the scenario asks for more.
        """
        return min(self.max_model_len, self._kv_tokens)

    @property
    def _kv_tokens(self) -> int:
        return min(pool.request_tokens(self.scenario.scheduler) for pool in self.pools)

    def check(self) -> None:
        """See that requests and hand-overs fit.

        Raises:
            InputError: they do not.
        """
        _ = self.longest_request, self.link


def prepare(scenario: Scenario) -> Prepared:
    """Fit the scenario's model on its devices.

    Raises:
        InputError: parts of the scenario do not go together.
    """
    wrong: list[InputError] = []
    tried(wrong, partial(_check_together, scenario))
    tried(wrong, partial(make_router, scenario.scheduler.router))
    model = tried(wrong, scenario.load_model)
    if scenario.cluster.pools is None:
        tried(wrong, scenario.load_device)
    if model is None or wrong:
        raise together(wrong)
    routing = routing_of(scenario, model)
    pools: list[PlacedPool] = []
    for name in scenario.pools:
        pools.append(place_pool(scenario, name, model, routing, first=sum(pool.replicas for pool in pools)))
    check_kv_caches(scenario.scheduler, pools)
    if scenario.autoscaling is not None:
        check_autoscaling(scenario.autoscaling, pools, scenario.slo, closed=scenario.workload.closed)
    return Prepared(scenario, model, tuple(pools), routing)


def _check_together(scenario: Scenario) -> None:
    classes = queue_classes(scenario.workload.classes or (), scenario.slo)
    check_together(scenario.scheduler, classes, pools=scenario.cluster.pools is not None)
    load = scenario.workload
    dependent = load.mode == "closed" or load.sessions is not None or load.max_concurrency is not None
    check_shedding(scenario.scheduler, classes, dependent=dependent)


def scenario_digest(scenario: Scenario) -> str:
    """sha256 of the scenario with all defaults and catalogue entries written out, and of its trace's content.

    Raises:
        InputError: the trace cannot be read.
    """
    trace = scenario.workload.trace
    return _digest(scenario, None if trace is None else trace_digest(trace))


def _digest(scenario: Scenario, trace_sha256: str | None) -> str:
    document = scenario.resolved()
    if trace_sha256 is not None:
        document["trace_sha256"] = trace_sha256
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
