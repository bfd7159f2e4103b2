"""A workload that was fitted to a trace: as a scenario, as plain data, and beside the trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.text import Text

from pimserve.cluster.base.figures import figure
from pimserve.cluster.cli.terminal import headed_table, warning
from pimserve.loadgen.fits.trace_fit import SEED, Sample, TraceFit

_PERCENTS = (50, 90, 99)
_WIDTH = 120


class _Dumper(yaml.SafeDumper):
    """Lists of lists in as few lines as they need."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:  # noqa: ANN401 as yaml has it
        """All lists are short ones, or rows of numbers."""
        return super().represent_sequence(tag, sequence, flow_style=True)


def fit_text(fit: TraceFit, name: str) -> str:
    """A scenario of nothing but the workload, which says in comments where it comes from."""
    distances = ", ".join(f"{what} {distance:.3f}" for what, distance in fit.distances.items())
    comments = [
        f"fitted by pimserve trace fit to {len(fit.trace.arrival_ps):,} requests of {name}",
        f"KS distances (seed {SEED}): {distances}",
        *(f"does not fit: {misfit}" for misfit in fit.misfits),
    ]
    document = {"workload": fit.workload}
    body = yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=_WIDTH)
    return "".join(f"# {' '.join(comment.split())}\n" for comment in comments) + body


def fit_document(fit: TraceFit, notes: Sequence[str]) -> dict[str, Any]:
    """Figures of both, how far they are apart, and the workload."""
    return {
        "trace": {key: value for key, _, value in _figures(fit.trace)},
        "fitted": {key: value for key, _, value in _figures(fit.fitted)},
        "ks_distances": fit.distances,
        "ks_noise": fit.noise,
        "misfits": fit.misfits,
        "notes": list(notes),
        "workload": fit.workload,
    }


def fit_page(name: str, fit: TraceFit, notes: Sequence[str]) -> RenderableType:
    """Figures of both side by side, their distances, and a verdict."""
    arrival, lengths = fit.workload["arrival"], fit.workload["lengths"]
    moving = f", a rate series of {len(arrival['rate_series'])} points" if "rate_series" in arrival else ""
    laws = ", ".join(f"{what} {law['kind']}" for what, law in lengths.items())
    table = headed_table("", "trace", "fitted")
    pairs = zip(_figures(fit.trace), _figures(fit.fitted), strict=True)
    for (_, label, of_trace), (_, _, fitted) in pairs:
        table.add_row(*map(Text, (label, figure(of_trace), figure(fitted))))
    distances = headed_table("KS distance", *fit.distances)
    distances.add_row(*map(Text, ("trace to fitted", *(f"{value:.3f}" for value in fit.distances.values()))))
    noise = f"two samples of one law are further apart than {fit.noise:.3f} in 5 % of cases"
    verdict: list[RenderableType] = [Text("fits: distances and dispersions are near", style="bold")]
    if fit.misfits:
        replay = "does not fit in all: where that matters, replay the trace itself (workload.trace)"
        verdict = [*(warning(f"misfit: {misfit}") for misfit in fit.misfits), Text(replay, style="bold")]
    if fit.tells_little:
        notes = [*notes, f"{len(fit.trace.arrival_ps):,} requests are too few to tell one law from another"]
    return Group(
        Text(f"{name}: {len(fit.trace.arrival_ps):,} requests", style="bold"),
        Text(f"arrivals {arrival['process']}{moving}; lengths {laws}; drawn with seed {SEED}"),
        "",
        table,
        "",
        distances,
        Text(noise),
        "",
        *verdict,
        *(Text(f"note: {note}") for note in notes),
    )


def _figures(sample: Sample) -> Iterator[tuple[str, str, float | None]]:
    """(key, label, value) of what is held side by side."""
    arrivals = sample.arrivals
    yield "rate_per_s", "rate, requests/s", arrivals.rate_per_s
    yield "gap_cv", "CV of gaps", arrivals.gap_cv
    for width_s, value in arrivals.dispersion.items():
        yield f"dispersion_{width_s}s", f"dispersion of counts, {width_s} s", value
    for name, lengths in sample.lengths.items():
        yield f"{name}_mean", f"{name} tokens, mean", lengths.mean
        for percent in _PERCENTS:
            yield f"{name}_p{percent}", f"{name} tokens, p{percent}", lengths.percentiles[percent]
    yield "rank_correlation", "rank correlation of lengths", sample.rank_correlation
