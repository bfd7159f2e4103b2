"""What each tenant had, for the reference engine: virtual token counters, as Algorithm 2 of Sheng et al. has them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass
class ReferenceShares:
    """Service by tenant: tokens of prompts that were admitted, and of outputs, by their weights, over tenants'."""

    input_weight: int
    output_weight: int
    tenant_weights: Mapping[str, int]
    service: dict[str, Fraction] = field(default_factory=dict)
    admitted_last: str | None = None

    def had(self, tenant: str) -> Fraction:
        return self.service.get(tenant, Fraction(0))

    def gain(self, tenant: str, service: int) -> None:
        self.service[tenant] = self.had(tenant) + Fraction(service, self.tenant_weights.get(tenant, 1))

    def enter(self, tenant: str, waiting: Collection[str]) -> None:
        """Of those who wait already, if nobody is this tenant, it does not come back with less than they have."""
        if tenant in waiting:
            return
        if waiting:
            self.service[tenant] = max(self.had(tenant), min(map(self.had, waiting)))
        elif self.admitted_last is not None:
            self.service[tenant] = max(self.had(tenant), self.had(self.admitted_last))

    def admit(self, tenant: str, input_tokens: int, *, first: bool) -> None:
        self.admitted_last = tenant
        if first:
            self.gain(tenant, self.input_weight * input_tokens)

    def emit(self, tenant: str, tokens: int) -> None:
        self.gain(tenant, self.output_weight * tokens)
