"""How much service each tenant had of a replica: the virtual token counters of Sheng et al. (VTC, OSDI 2024).

A token of a prompt counts when the request is admitted for the first time, one of an output when it is there, each by
its weight. What is computed again after a preemption, or elsewhere, is no service.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.queue_classes import QueueClass


class TokenCounters:
    """A counter of each tenant, and how many of its requests decode.

    Args:
        spec: has the weights.
        classes: of requests, as `queue_classes` has them; tenants are numbered as they come there.
    """

    def __init__(self, spec: SchedulerSpec, classes: Sequence[QueueClass]) -> None:
        numbers = {tenant: number for number, tenant in enumerate(dict.fromkeys(each.tenant for each in classes))}
        self.tenants = [numbers[each.tenant] for each in classes]  # of each class
        self._input_weight = spec.input_token_weight
        self._output_weight = spec.output_token_weight
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
        self.service[tenant] += self._input_weight * input_tokens

    def emit(self, tenant: int) -> None:
        """A request has the token that comes with its prompt."""
        self.service[tenant] += self._output_weight

    def decode(self, steps: int) -> None:
        """All who decode have a token of each of so many steps."""
        for tenant, requests in enumerate(self.decoding):
            self.service[tenant] += self._output_weight * requests * steps

    def gain(self, tokens: Sequence[int]) -> None:
        """A step gives the requests of each tenant so many tokens."""
        for tenant, emitted in enumerate(tokens):
            self.service[tenant] += self._output_weight * emitted

    def steps_to_pass(self, tenant: int, others: Iterable[int]) -> int | None:
        """Steps until the first of `others`, who had no less, has no more than this tenant; None: none will."""
        first: int | None = None
        for other in others:
            gained = self._output_weight * (self.decoding[tenant] - self.decoding[other])
            if gained > 0:
                steps = max(1, -(-(self.service[other] - self.service[tenant]) // gained))
                first = steps if first is None else min(first, steps)
        return first
