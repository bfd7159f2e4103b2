"""A workload that is like a trace, and how like it is.

Every proposal of an arrival process is drawn as the workload would be, and held against the trace: by the
Kolmogorov-Smirnov distance of gaps, and by the dispersion of counts at three widths, since a process may have the gaps
and not the bursts. The nearest is taken, a simpler one where it is as near.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from pimserve.arrays import FloatArray, IntArray
from pimserve.errors import InputError
from pimserve.loadgen.arrival_figures import ArrivalFigures, arrival_figures
from pimserve.loadgen.arrivals import ArrivalSpec, arrival_times
from pimserve.loadgen.fits.gap_fits import gamma_shape, weibull_shape_of
from pimserve.loadgen.fits.length_fits import fit_lengths
from pimserve.loadgen.fits.mmpp_fits import mmpp_proposals
from pimserve.loadgen.fits.rate_fits import fit_rate
from pimserve.loadgen.length_figures import LengthFigures, length_figures, rank_correlation
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces import Trace
from pimserve.loadgen.workload import WorkloadSpec, generate

SEED = 0
"""Of the workload that is held against the trace."""
_DISPERSION = 0.2  # what an e-fold of dispersion counts, where a distance of gaps counts as it is
_PER_NUMBER = 2e-4  # by how much nearer a process must be for each number that it needs
_SEEDS, _MANY = 3, 200_000  # by which a process is judged; of so many requests one is enough
_BIN_WIDTHS_S = (5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_FEWEST_BINS, _MOST_BINS, _FEWEST_IN_BIN = 5, 400, 5.0
_UNCERTAIN_BINS = 20  # of which dispersion tells half as much as of many
_SURE = 2.5  # errors of a shape, about 1 / sqrt(n), by which it must not be that of exponential gaps
_LEAST_CV = 0.01  # of gaps that vary at all
_NOISE = 1.36  # of two samples of one law: 5 % are further apart than 1.36 sqrt(2 / n)
_TELLS_LITTLE = 0.15  # distance: that of 164 requests
_NEAR, _NEAR_FACTOR = 0.05, 1.5  # what passes for a fit: distance, ratio of dispersions


@dataclass(frozen=True, eq=False)
class Sample:
    """Requests, of a trace or generated, and their figures."""

    arrival_ps: IntArray
    input_tokens: IntArray
    output_tokens: IntArray

    @property
    def arrivals(self) -> ArrivalFigures:
        """Figures of arrivals."""
        return arrival_figures(self.arrival_ps)

    @property
    def lengths(self) -> dict[str, LengthFigures]:
        """Figures of input and output."""
        return {"input": length_figures(self.input_tokens), "output": length_figures(self.output_tokens)}

    @property
    def rank_correlation(self) -> float | None:
        """Of input and output (Spearman)."""
        return rank_correlation(self.input_tokens, self.output_tokens)


@dataclass(frozen=True, eq=False)
class TraceFit:
    """`workload`: a scenario's section. `trace`, `fitted`: what it is like, and what `workload` generates from `SEED`.

    `distances`: Kolmogorov-Smirnov, of gaps, input and output. `noise`: what 5 % of pairs of samples of one law exceed.
    """

    workload: dict[str, Any]
    trace: Sample
    fitted: Sample
    distances: dict[str, float]
    noise: float

    @property
    def tells_little(self) -> bool:
        """Whether there are so few requests that unlike laws would pass for one."""
        return self.noise > _TELLS_LITTLE

    @property
    def misfits(self) -> list[str]:
        """Where they are unlike, in words."""
        trace, fitted, limit = self.trace.arrivals, self.fitted.arrivals, max(_NEAR, self.noise)
        said = [f"{name}: KS {ks:.3f}, above {limit:.3f}" for name, ks in self.distances.items() if ks > limit]
        pairs = {"CV of gaps": (trace.gap_cv, fitted.gap_cv, trace.n)}
        for width_s, value in trace.dispersion.items():
            pairs[f"dispersion at {width_s} s"] = value, fitted.dispersion[width_s], int(trace.span_s // width_s)
        for name, (value, other, samples) in pairs.items():
            allowed = max(math.log(_NEAR_FACTOR), 4 / math.sqrt(max(samples, 1)))  # two errors of two such figures
            if value and other and abs(math.log(other / value)) > allowed:
                said.append(f"{name}: {other:.3g} where the trace has {value:.3g}")
        return said


def ks_distance(one: IntArray, other: IntArray) -> float:
    """Kolmogorov-Smirnov: how far apart the cumulative shares of two samples are at most."""
    one, other = np.sort(one), np.sort(other)
    values = np.concatenate([one, other])
    shares = [np.searchsorted(each, values, side="right") / len(each) for each in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def fit_trace(trace: Trace) -> TraceFit:
    """Fit a workload to a trace.

    Raises:
        InputError: it has fewer than three requests, or all of them at one time.
    """
    times_ps = trace.arrival_ps
    if len(times_ps) < 3 or times_ps[-1] == times_ps[0]:
        raise InputError("trace", "a fit needs three requests at least, not all of them at one time")
    arrival = _nearest(times_ps)
    lengths = fit_lengths(trace.input_tokens, trace.output_tokens)
    workload: dict[str, Any] = {"num_requests": len(times_ps), "arrival": arrival, "lengths": lengths}
    drawn = generate(WorkloadSpec.model_validate(workload), SEED)
    recorded = Sample(times_ps, trace.input_tokens, trace.output_tokens)
    fitted = Sample(drawn.arrival_ps, drawn.input_tokens, drawn.output_tokens)
    return TraceFit(
        workload=workload,
        trace=recorded,
        fitted=fitted,
        distances={
            "gaps": ks_distance(np.diff(recorded.arrival_ps), np.diff(fitted.arrival_ps)),
            "input": ks_distance(recorded.input_tokens, fitted.input_tokens),
            "output": ks_distance(recorded.output_tokens, fitted.output_tokens),
        },
        noise=min(1.0, _NOISE * math.sqrt(2 / len(times_ps))),
    )


def _nearest(times_ps: IntArray) -> dict[str, Any]:
    """The proposal that is least unlike."""
    gaps_ps, figures = np.diff(times_ps), arrival_figures(times_ps)
    best: tuple[float, dict[str, Any]] | None = None
    for proposal in _proposals(times_ps):
        misfit = _PER_NUMBER * _numbers(proposal)
        seeds = range(SEED, SEED + (_SEEDS if len(times_ps) < _MANY else 1))
        try:
            spec = ArrivalSpec.model_validate(proposal)
            draws = [arrival_times(spec, Streams(seed), len(times_ps), None) for seed in seeds]
        except (ValidationError, InputError):  # out of what a process may be
            continue
        for drawn in draws:
            apart = _DISPERSION * _apart(figures, arrival_figures(drawn))
            misfit += (ks_distance(gaps_ps, np.diff(drawn)) + apart) / len(draws)
        if best is None or misfit < best[0]:
            best = misfit, proposal
    assert best is not None  # a Poisson process can be drawn of any rate
    return best[1]


def _numbers(proposal: Any) -> int:  # noqa: ANN401 what a document holds
    """How many a proposal needs; of a point of a rate series the rate."""
    if isinstance(proposal, dict):
        series = len(proposal.get("rate_series", ()))
        return series + sum(_numbers(value) for key, value in proposal.items() if key != "rate_series")
    return sum(map(_numbers, proposal)) if isinstance(proposal, list) else int(isinstance(proposal, float))


def _apart(one: ArrivalFigures, other: ArrivalFigures) -> float:
    """Mean logarithm of the ratio of dispersions; what few bins tell counts less."""
    total = weights = 0.0
    for width_s, value in one.dispersion.items():
        drawn = other.dispersion[width_s]
        if value and drawn:
            bins = one.span_s / width_s
            total += bins / (bins + _UNCERTAIN_BINS) * abs(math.log(drawn / value))
            weights += bins / (bins + _UNCERTAIN_BINS)
    return total / weights if weights else 0.0


def _proposals(times_ps: IntArray) -> Iterator[dict[str, Any]]:
    """Arrival processes, from simple ones to those with a moving rate."""
    after_s = (times_ps - times_ps[0]) / PS_PER_S
    gaps_s = np.diff(after_s)
    rate = {"rate_per_s": float(f"{1 / gaps_s.mean():.7g}")}
    if gaps_s.std() < _LEAST_CV * gaps_s.mean():
        yield {"process": "constant"} | rate
    for law in ({"process": "poisson"}, *_laws(gaps_s)):
        yield law | rate
    for mmpp in mmpp_proposals(times_ps):
        yield {"process": "mmpp", "mmpp": mmpp}
    for width_s in _BIN_WIDTHS_S:
        bins = round(float(after_s[-1]) / width_s)
        if _FEWEST_BINS <= bins <= _MOST_BINS and len(times_ps) / bins >= _FEWEST_IN_BIN:
            yield from _moving(times_ps, after_s, bins)


def _moving(times_ps: IntArray, after_s: FloatArray, bins: int) -> Iterator[dict[str, Any]]:
    """Laws of gaps on a rate that moves from bin to bin."""
    poisson = fit_rate(times_ps, bins, 1.0)
    if poisson is None:
        return
    yield {"process": "nhpp", "rate_series": poisson.points}
    for law in _laws(np.diff(poisson.operational(after_s))):
        # Bursty gaps take a part of what the rate would have moved by.
        series = fit_rate(times_ps, bins, _noise_of(law))
        if series is not None:
            for again in _laws(np.diff(series.operational(after_s))):
                if again.keys() == law.keys():
                    yield again | {"rate_series": series.points}


def _laws(gaps: FloatArray) -> Iterator[dict[str, Any]]:
    """Gamma by likelihood and by the CV, and Weibull; none that may as well be exponential."""
    cv = float(gaps.std() / gaps.mean())
    laws = (
        ("gamma", "burstiness", gamma_shape(gaps)),
        ("gamma", "cv", cv),
        ("weibull", "shape", weibull_shape_of(gaps)),
    )
    for process, key, value in laws:
        if abs(value - 1) > _SURE / math.sqrt(len(gaps)) and cv > _LEAST_CV:
            yield {"process": process, key: float(f"{value:.5g}")}


def _noise_of(law: dict[str, Any]) -> float:
    """CV^2 of a law of gaps."""
    if "cv" in law:
        return float(law["cv"] ** 2)
    if "burstiness" in law:
        return float(1 / law["burstiness"])
    return math.expm1(math.lgamma(1 + 2 / law["shape"]) - 2 * math.lgamma(1 + 1 / law["shape"]))
