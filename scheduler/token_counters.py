"""How much service each tenant had of a replica: the virtual token counters of Sheng et al. (VTC, OSDI 2024).

A token of a prompt counts when the request is admitted for the first time, one of an output when it is there, each by
its weight, and over that of the tenant. What is computed again after a preemption, or elsewhere, is no service.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import lcm

from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.queue_classes import QueueClass


class TokenCounters:
    """A counter of each tenant, and how many of its requests decode.

    Args:
        spec: has the weights.
        classes: of requests, as `queue_classes` has them; tenants are numbered as they come there.
    """

    def __init__(self, spec: SchedulerSpec, classes: Sequence[QueueClass]) -> None:
        weights = {each.tenant: each.tenant_weight for each in classes}
        numbers = {tenant: number for number, tenant in enumerate(weights)}
        self.tenants = [numbers[each.tenant] for each in classes]  # of each class
        # Service is divided by the tenant's weight: in parts that are whole for all.
        whole = lcm(*weights.values())
        self._input_weights = [spec.input_token_weight * whole // weight for weight in weights.values()]
        self._output_weights = [spec.output_token_weight * whole // weight for weight in weights.values()]
        self.service = [0] * len(numbers)
        self.nobody_decodes()

    def nobody_decodes(self) -> None:
        """Forget who decodes."""
        self.decoding = [0] * len(self.service)

    def lift(self, tenant: int, others: Iterable[int]) -> None:
        """A tenant of whom nobody waited comes back: it has at least what the one of `others` with the least had."""
        least = min((self.service[other] for other in others), default=0)
        self.service[tenant] = max(self.service[tenant], least)

    def admit(self, tenant: int, input_tokens: int) -> None:
        """A prompt will be computed."""
        self.service[tenant] += self._input_weights[tenant] * input_tokens

    def emit(self, tenant: int) -> None:
        """A request has the token that comes with its prompt."""
        self.service[tenant] += self._output_weights[tenant]

    def decode(self, steps: int) -> None:
        """All who decode have a token of each of so many steps."""
        for tenant, requests in enumerate(self.decoding):
            self.service[tenant] += self._output_weights[tenant] * requests * steps

    def gain(self, tokens: Sequence[int]) -> None:
        """A step gives the requests of each tenant so many tokens."""
        for tenant, emitted in enumerate(tokens):
            self.service[tenant] += self._output_weights[tenant] * emitted

    def steps_to_pass(self, tenant: int, others: Iterable[int]) -> int | None:
        """Steps until the first of `others`, who had no less, has no more than this tenant; None: none will."""
        first: int | None = None
        for other in others:
            gained = self._in_step(tenant) - self._in_step(other)
            if gained > 0:
                steps = max(1, -(-(self.service[other] - self.service[tenant]) // gained))
                first = steps if first is None else min(first, steps)
        return first

    def _in_step(self, tenant: int) -> int:
        """What a tenant gains in a step."""
        return self._output_weights[tenant] * self.decoding[tenant]
