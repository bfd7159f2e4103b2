"""What the published formulas of attention-FFN disaggregation have in common: named inputs, and a figure of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pimserve.cluster.validation.targets import Method

# Wide enough for any hardware, and narrow enough for products of them to stay numbers.
Positive = Annotated[float, Field(ge=1e-9, le=1e15)]
NotNegative = Annotated[float, Field(ge=0, le=1e15)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Inputs(BaseModel):
    """Keys of a case. The unit of a key is the end of its name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Formula(Inputs, ABC):
    """A formula with its inputs."""

    method: ClassVar[Method] = "closed form"

    @abstractmethod
    def value(self) -> float:
        """The figure."""

    def note(self) -> str:
        """What has to be said beside it; nothing by default."""
        return ""
