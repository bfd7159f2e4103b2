"""`pimserve trace`: what recorded traces are like. What is heavy is imported when a command runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimserve.cluster.cli.options import AsJson, with_option_groups
from pimserve.cluster.cli.output import print_json, print_page
from pimserve.errors import InputError

if TYPE_CHECKING:
    from pimserve.loadgen.traces import TraceSpec

trace = typer.Typer(help="Look at recorded traces.", no_args_is_help=True)


@dataclass(frozen=True)
class _Rows:
    """Which rows of which trace."""

    file: Annotated[
        str,
        typer.Argument(
            metavar="[FORMAT:]FILE", help="File, folder or archive, such as trace.csv or azure:trace.csv.gz."
        ),
    ]
    start_s: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Skip rows before this time of its clock.", show_default=False),
    ] = None
    end_s: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Skip rows from this time of its clock on.", show_default=False),
    ] = None
    max_requests: Annotated[
        int | None, typer.Option(metavar="N", help="Use at most so many rows.", show_default=False)
    ] = None
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=NAME",
            help="What a generic file calls a column, such as arrival=t or unit=ms; repeatable.",
            show_default=False,
        ),
    ] = None
    sort: Annotated[bool, typer.Option("--sort", help="Its rows may be in any order of time.")] = False
    drop_bad_rows: Annotated[bool, typer.Option("--drop-bad-rows", help="Leave bad rows out, and count them.")] = False

    def spec(self, **more: Any) -> TraceSpec:  # noqa: ANN401 keys of TraceSpec
        """The same as a scenario would say it; `more`: further keys of it, left out where they are None.

        Raises:
            InputError: a value is not acceptable.
        """
        from pydantic import ValidationError  # noqa: PLC0415

        from pimserve.errors import validation_error  # noqa: PLC0415
        from pimserve.loadgen.traces import TraceSpec, parse_trace_argument  # noqa: PLC0415

        try:
            named = parse_trace_argument(self.file)
        except InputError as error:
            raise error.at("FILE") from None
        wanted = {
            "format": named.format,
            "path": named.path,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "max_requests": self.max_requests,
            "columns": dict(_pair(column) for column in self.columns) if self.columns else None,
            "sort": self.sort,
            "on_bad_row": "drop" if self.drop_bad_rows else "error",
            **more,
        }
        try:
            return TraceSpec.model_validate({key: value for key, value in wanted.items() if value is not None})
        except ValidationError as error:
            raise validation_error("trace", error, TraceSpec) from None


@dataclass(frozen=True)
class _Change:
    """What is done to rows."""

    time_scale: Annotated[
        float | None,
        typer.Option(metavar="FACTOR", help="Multiply times; 0.5 doubles the rate.", show_default=False),
    ] = None
    target_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Rescale times to so many requests/s.", show_default=False),
    ] = None
    sample_ratio: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Keep a share of the rows, by lot.", show_default=False),
    ] = None
    tick_jitter: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="Spread times within their ticks: uniform or even.", show_default=False),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn by lot, as run.seed.")] = 0

    def keys(self) -> dict[str, Any]:
        """The same as keys of a scenario's trace."""
        return {
            "time_scale": self.time_scale,
            "target_rate_per_s": self.target_rate,
            "sample_ratio": self.sample_ratio,
            "tick_jitter": self.tick_jitter,
        }


def _pair(text: str) -> tuple[str, str]:
    key, equals, name = text.partition("=")
    if not equals:
        raise InputError("--columns", f"{text!r} is not KEY=NAME, such as arrival=t")
    return key.strip(), name.strip()


def stats_command(
    rows: _Rows,
    capacity: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            metavar="BLOCKS",
            help="Size of a cache for which prefix hits are told; repeatable.",
            show_default="1000, 5000, 20000",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it too: FILE.png or FILE.svg.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a trace is like: rate, burstiness at several scales, lengths, sessions, prefix hits."""
    from pimserve.cluster.cli.progress import spinner  # noqa: PLC0415
    from pimserve.cluster.cli.trace_tables import stats_page  # noqa: PLC0415
    from pimserve.cluster.report.trace_picture import check_picture, write_trace_picture  # noqa: PLC0415
    from pimserve.loadgen.trace_stats import CAPACITIES, stats_document, trace_stats  # noqa: PLC0415

    spec, capacities = rows.spec(), tuple(capacity or CAPACITIES)
    if out is not None:
        check_picture(out)
    if as_json:
        print_json(stats_document(spec, capacities))
        if out is None:
            return
    with spinner("reading"):
        stats = trace_stats(spec)
    if not as_json:
        print_page(stats_page(spec.path, stats, capacities))
    if out is not None:
        with spinner("drawing"):
            write_trace_picture(out, Path(spec.path).name, stats)
        typer.echo(f"picture in {out}", err=True)


def cut_command(
    rows: _Rows,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV to write; default: standard output.", show_default=False)
    ] = None,
    *,
    change: _Change,
) -> None:
    """Write a slice of a trace, rescaled if need be, as CSV that replays to the picosecond."""
    from pimserve.cluster.base.files import output_file  # noqa: PLC0415
    from pimserve.loadgen.streams import Streams  # noqa: PLC0415
    from pimserve.loadgen.trace_cut import beside_lengths, write_trace  # noqa: PLC0415
    from pimserve.loadgen.traces import load_trace  # noqa: PLC0415

    cut = load_trace(rows.spec(**change.keys()), Streams(change.seed))
    if out is None:
        write_trace(cut, sys.stdout)
    else:
        with output_file(out, exists="exists already; give another file with --out") as file:
            write_trace(cut, file)
        typer.echo(f"{len(cut.arrival_ps):,} of {cut.rows_read:,} rows in {out}", err=True)
    for fact in beside_lengths(cut):
        typer.echo(f"note: lost: {fact}", err=True)


def fit_command(
    rows: _Rows,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Scenario to write (YAML); default: standard output, figures to standard error.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures and workload as JSON.")] = False,
    *,
    change: _Change,
) -> None:
    """Write a workload section that is like a trace, and print how like it is."""
    from pimserve.cluster.base.files import output_file  # noqa: PLC0415
    from pimserve.cluster.cli.progress import spinner  # noqa: PLC0415
    from pimserve.cluster.cli.terminal import write  # noqa: PLC0415
    from pimserve.cluster.cli.trace_fit_page import fit_document, fit_page, fit_text  # noqa: PLC0415
    from pimserve.loadgen.fits.trace_fit import fit_trace  # noqa: PLC0415
    from pimserve.loadgen.streams import Streams  # noqa: PLC0415
    from pimserve.loadgen.trace_cut import beside_lengths  # noqa: PLC0415
    from pimserve.loadgen.traces import load_trace, ticks_warning, together_warning  # noqa: PLC0415

    spec, streams = rows.spec(**change.keys()), Streams(change.seed)
    with spinner("fitting"):
        trace = load_trace(spec, streams)
        notes = [*(f"not fitted: {fact}" for fact in beside_lengths(trace)), *together_warning(trace)]
        if spec.tick_jitter == "none" and ticks_warning(trace.arrival_ps):
            trace = load_trace(spec.model_copy(update={"tick_jitter": "uniform"}), streams)
            notes.append("the trace's times are in ticks, most of its gaps 0: fitted to times spread uniformly in them")
        fit = fit_trace(trace)
    text = fit_text(fit, spec.path)
    if out is not None:
        with output_file(out, exists="exists already; give another file with --out") as file:
            file.write(text)
    if as_json:
        print_json(fit_document(fit, notes))
        return
    page = fit_page(spec.path, fit, notes)
    if out is not None:
        print_page(page)
        return
    typer.echo(text, nl=False)
    write(page, sys.stderr)


trace.command("stats")(with_option_groups(stats_command))
trace.command("cut")(with_option_groups(cut_command))
trace.command("fit")(with_option_groups(fit_command))
