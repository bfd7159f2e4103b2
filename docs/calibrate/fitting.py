"""Robust least squares with priors, within bounds; deterministic.

Minimised is the sum of weight x huber(error) over errors, plus ((value - prior) / spread)^2 over parameters. Huber's
function is e^2 / (2 corner) up to `corner` and a line above, so that a few odd calls do not bend the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]
_CORNER = 0.05  # of errors of operators


@dataclass(frozen=True, slots=True)
class Parameter:
    """A coefficient: its bounds, the value that it has without evidence, and how far evidence must reach to move it.

    `spread`: one unit of loss, about one call that is wrong by half; inf for no prior. `scale`: a usual change.
    """

    name: str
    prior: float
    spread: float
    low: float
    high: float
    scale: float


def fit(
    errors: Callable[[Array], Array],
    parameters: Sequence[Parameter],
    starts: Sequence[Sequence[float]],
    weights: Array | None = None,
    *,
    corner: float = _CORNER,
    difference: float = 1e-3,
    tolerance: float = 1e-6,
) -> Array:
    """The values with the smallest loss of all starts.

    Args:
        errors: log errors, given the parameters' values.
        parameters: what to fit.
        starts: first guesses.
        weights: of the errors; 1 by default.
        corner: of Huber's function.
        difference: step of the numerical derivative, in scales.
        tolerance: relative change of the loss at which to stop.
    """
    scale = np.array([parameter.scale for parameter in parameters])
    low, high = (np.array([getattr(parameter, bound) for parameter in parameters]) / scale for bound in ("low", "high"))
    prior, spread = (np.array([getattr(parameter, name) for parameter in parameters]) for name in ("prior", "spread"))

    def residuals(point: Array) -> Array:
        return np.concatenate([errors(point * scale), (point * scale - prior) / spread])

    count = len(errors(np.clip(np.array(starts[0]) / scale, low, high) * scale))
    weight = np.ones(count) if weights is None else weights

    def loss(squared: Array) -> Array:
        """Value and two derivatives by the squared residual, twice the loss as scipy halves it."""
        error = np.sqrt(np.maximum(squared[:count], corner**2))
        inside = squared[:count] <= corner**2
        value = np.where(inside, squared[:count], 2 * corner * error - corner**2) / (2 * corner)
        first = np.where(inside, 1.0, corner / error) / (2 * corner)
        second = np.where(inside, 0.0, -corner / (2 * error**3)) / (2 * corner)
        ones, zeros = np.ones(len(parameters)), np.zeros(len(parameters))
        data = [weight * part for part in (value, first, second)]
        return 2 * np.array([np.concatenate(pair) for pair in zip(data, (squared[count:], ones, zeros), strict=True)])

    def jacobian(point: Array) -> Array:
        base = residuals(point)
        columns = []
        for index in range(len(point)):
            step = difference if point[index] + difference <= high[index] else -difference
            moved = point.copy()
            moved[index] += step
            columns.append((residuals(moved) - base) / step)
        return np.stack(columns, axis=1)

    margin = 1e-3 * (high - low)
    solutions = [
        least_squares(
            residuals,
            np.clip(np.array(start) / scale, low + margin, high - margin),
            jacobian,
            (low, high),
            loss=loss,
            ftol=tolerance,
            xtol=tolerance,
            max_nfev=200,
        )
        for start in starts
    ]
    best = min(solutions, key=lambda solution: solution.cost)
    return np.asarray(best.x * scale)
