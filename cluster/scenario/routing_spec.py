"""How tokens choose experts, as a scenario says it."""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from pimserve.device_models.model import ModelSpec
from pimserve.device_models.popularity_walk import MOST_SKEW, Drift
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.quantity import MAX_TIME_S, Quantity

Weight = Annotated[float, Field(ge=0, le=1e100, allow_inf_nan=False)]


def _by_layer(weights: object) -> bool:
    """Whether there is a list of weights for each layer."""
    return isinstance(weights, list | tuple) and any(isinstance(row, list | tuple) for row in weights)


_Weights = Annotated[
    Annotated[tuple[Weight, ...], Tag("<for all layers>")]
    | Annotated[tuple[tuple[Weight, ...], ...], Tag("<by layer>")],
    Discriminator(lambda weights: "<by layer>" if _by_layer(weights) else "<for all layers>"),
]


class DriftSpec(BaseModel):
    """Popularities of experts that walk at random: their logarithms take a step at the end of every interval.

    A step of a replica follows the popularities of the time at which it begins. Layers with weights in common keep
    them in common.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    interval_s: Annotated[float, Quantity("s", least=1e-3, most=MAX_TIME_S)] = Field(
        description="simulated time between two steps"
    )
    sigma: Annotated[float, Field(gt=0, le=10)] = Field(
        description="standard deviation of a step of a log popularity: 0.1 is about 10 % up or down"
    )


class RoutingSpec(BaseModel):
    """How tokens choose experts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    popularity: Literal["uniform", "zipf", "given"] = Field(
        "uniform", description="uniform: every set of top_k experts alike; zipf, given: experts have weights"
    )
    zipf_exponent: Annotated[float, Field(ge=0, le=10)] | None = Field(None, description="with popularity: zipf")
    weights: _Weights | None = Field(
        None,
        description="with popularity: given, one weight per expert, or a list of these for each MoE layer; an expert "
        "of weight 0 never gets a token",
    )
    weights_file: str | None = Field(
        None,
        description="weights, from a CSV, JSON or NPY file: a row for all MoE layers, or one for each (looked for in "
        "the scenario's folder, then in the working folder)",
    )
    mode: Literal["pooled", "exact"] = Field(
        "pooled", description="pooled: steps pick from outcomes drawn once; exact: every layer of every step is drawn"
    )

    drift: DriftSpec | None = Field(None, description="popularities change during the run; left out: they do not")

    @model_validator(mode="after")
    def _parameters_belong(self) -> Self:
        for popularity, key, value in (
            ("zipf", "zipf_exponent", self.zipf_exponent),
            ("given", "weights", self.weights),
        ):
            if self.popularity == popularity and value is None:
                raise ValueError(f"popularity: {popularity} needs {key}")
            if self.popularity != popularity and value is not None:
                raise ValueError(f"{key} goes with popularity: {popularity}")
        if self.weights_file is not None:
            raise ValueError("weights_file is read with the scenario's own file only: give weights")
        for row in self._rows:
            above = [weight for weight in row if weight]
            if above and max(above) > MOST_SKEW * min(above):
                raise ValueError(f"weights above 0 must lie within a factor of {MOST_SKEW:g}")
        return self

    @property
    def _rows(self) -> tuple[tuple[float, ...], ...]:
        """Weights of all MoE layers, or of each."""
        if self.weights is None:
            return ()
        rows = self.weights if _by_layer(self.weights) else (self.weights,)
        return cast("tuple[tuple[float, ...], ...]", rows)

    def for_model(self, model: ModelSpec) -> Routing:
        """Routing among the model's experts.

        Raises:
            InputError: the weights are not those of its experts and layers, or leave a token too few to pick from.
        """
        rows, moe = self._rows, model.moe
        if moe is not None and rows:
            if len(rows) not in {1, model.moe_layers}:
                message = f"{len(rows)} lists of weights for {model.moe_layers} MoE layers of {model.name}"
                raise InputError("routing.weights", f"{message}; give one for all, or one for each")
            for layer, row in enumerate(rows):
                where = f"routing.weights.{layer}" if _by_layer(self.weights) else "routing.weights"
                if len(row) != moe.experts:
                    raise InputError(where, f"{len(row)} weights for the model's {moe.experts} experts")
                if (above := sum(weight > 0 for weight in row)) < moe.top_k:
                    raise InputError(where, f"only {above} are above 0, and each token picks {moe.top_k} experts")
        rows = rows if len(set(rows)) > 1 else rows[:1]
        drift = None if self.drift is None else Drift(round(self.drift.interval_s * PS_PER_S), self.drift.sigma)
        return Routing(self.popularity, self.zipf_exponent or 0.0, rows, self.mode, drift)
