"""Types of fields that several sections of a scenario have."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from pimserve.quantity import GigabytesPerSecond, Microseconds

Count = Annotated[int, Field(gt=0, le=4096)]


def is_auto(value: object) -> str | None:
    """Tag of a number, which has no place in the paths of errors, or of auto."""
    return "" if not isinstance(value, str) else "auto" if value == "auto" else None


Devices = Annotated[
    Annotated[Count, Tag("")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(is_auto, custom_error_type="devices", custom_error_message="must be a whole number, or auto"),
]


def _name_or_mapping(value: object) -> object:
    if not isinstance(value, str | dict):
        raise ValueError("must be a name of the catalogue, a YAML file, or a mapping of keys to values")  # noqa: TRY004 pydantic wants ValueError
    return value


Entry = Annotated[str | dict[str, Any], BeforeValidator(_name_or_mapping)]


class AssumedLink(BaseModel):
    """A link whose bandwidth and latency have usual values, which results say are assumed where none are given."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    usual: ClassVar[tuple[float, float]]  # GB/s, us

    gb_per_s: GigabytesPerSecond | None = None
    latency_us: Microseconds | None = None

    @property
    def resolved_gb_per_s(self) -> float:
        """Bandwidth, given or assumed."""
        return self.usual[0] if self.gb_per_s is None else self.gb_per_s

    @property
    def resolved_latency_us(self) -> float:
        """Latency, given or assumed."""
        return self.usual[1] if self.latency_us is None else self.latency_us

    def assumed(self, where: str) -> list[str]:
        """What is not given of the link at this place of the scenario: a sentence, or none."""
        usual = dict(zip(("gb_per_s", "latency_us"), self.usual, strict=True))
        missing = [f"{key} {value:g}" for key, value in usual.items() if getattr(self, key) is None]
        return [f"{where}: {' and '.join(missing)} assumed, as the scenario gives none"] if missing else []
