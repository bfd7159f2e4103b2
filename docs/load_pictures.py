"""Pictures of arrivals, as SVG: when they come, at which rate, their gaps, and how counts disperse."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pimserve.arrays import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _LAW, _FAINT = "#0072b2", "#d55e00", "#888888"
_TICKS, _CURVE, _BINS = 160, 160, 120
_FEWEST_BINS = 20  # of counts, below which their dispersion is noise


@dataclass(frozen=True)
class Arrivals:
    """What is drawn: arrivals, s, ascending from 0 on; and points of the rate that was asked for, if any (s, 1/s)."""

    times_s: FloatArray
    asked: tuple[FloatArray, FloatArray] | None = None

    @property
    def gaps_s(self) -> FloatArray:
        """Between one and the next."""
        return np.diff(self.times_s)

    def dispersion(self) -> tuple[FloatArray, FloatArray]:
        """(widths of bins, s; variance over mean of counts), from a mean gap up to a twentieth of all."""
        span = float(self.times_s[-1])
        widths = np.geomspace(span / len(self.times_s), span / _FEWEST_BINS, 30)
        counted = [np.bincount((self.times_s / width).astype(np.int64))[:-1] for width in widths]
        return widths, np.array([counts.var() / counts.mean() for counts in counted])


def picture(arrivals: Arrivals, rate_until_s: float | None = None) -> str:
    """Four panels; the same bytes for the same arrivals.

    Args:
        arrivals: to draw.
        rate_until_s: how much of them the panel of the rate shows; None: all.
    """
    import matplotlib as mpl  # noqa: PLC0415 the page's text needs none

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    fonts: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8}
    with mpl.rc_context({"svg.hashsalt": "load"} | fonts):
        figure, (ticks, rate, gaps, dispersion) = plt.subplots(
            1, 4, figsize=(11, 2.1), layout="constrained", width_ratios=(1.1, 1.3, 1, 1)
        )
        _draw_ticks(ticks, arrivals)
        _draw_rate(rate, arrivals, rate_until_s or float(arrivals.times_s[-1]))
        _draw_gaps(gaps, arrivals)
        _draw_dispersion(dispersion, arrivals)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _draw_ticks(axes: Axes, arrivals: Arrivals) -> None:
    """The first arrivals, one by one, and how many there were."""
    first = arrivals.times_s[:_TICKS]
    axes.plot(first, np.full(len(first), 0.9 * len(first)), "|", color=_FAINT, markersize=14, markeredgewidth=0.5)
    axes.step(first, np.arange(1, len(first) + 1), where="post", color=_INK, linewidth=1)
    axes.set(title=f"the first {len(first)} arrivals", xlabel="s", ylabel="requests so far", ylim=(0, None))


def _draw_rate(axes: Axes, arrivals: Arrivals, until_s: float) -> None:
    counts, edges = np.histogram(arrivals.times_s[arrivals.times_s < until_s], bins=_BINS, range=(0, until_s))
    axes.stairs(counts / np.diff(edges), edges, color=_INK, linewidth=1)
    if arrivals.asked is not None:
        times, rates = arrivals.asked
        axes.plot(times[times <= until_s], rates[times <= until_s], color=_LAW, linewidth=1)
    axes.set(title=f"rate, in bins of {until_s / _BINS:.3g} s", xlabel="s", ylabel="requests/s", ylim=(0, None))


def _draw_gaps(axes: Axes, arrivals: Arrivals) -> None:
    """Their distribution, beside an exponential one of the same mean."""
    gaps = arrivals.gaps_s
    mean = float(gaps.mean())
    shares = np.linspace(0, 1, _CURVE)
    axes.plot(np.quantile(gaps, shares, method="inverted_cdf") / mean, shares, color=_INK, linewidth=1)
    x = np.linspace(0, 4, _CURVE)
    axes.plot(x, 1 - np.exp(-x), color=_FAINT, linewidth=0.8, linestyle="--")
    title = f"gaps, CV {gaps.std() / mean:.2f}"
    axes.set(title=title, xlabel="gap / mean gap", ylabel="share below", xlim=(0, 4), ylim=(0, 1.02))


def _draw_dispersion(axes: Axes, arrivals: Arrivals) -> None:
    """Of a Poisson process it is 1, dashed."""
    widths, found = arrivals.dispersion()
    axes.plot(widths, found, color=_INK, linewidth=1)
    axes.axhline(1, color=_FAINT, linewidth=0.8, linestyle="--")
    axes.set(title="variance / mean of counts", xlabel="width of bins, s", xscale="log", yscale="log")
    axes.set_ylim(min(0.3, max(1e-3, found.min() / 1.5)), max(3.0, found.max() * 1.5))
