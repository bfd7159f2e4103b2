"""The device of a run: its roofline with the operators as points, the load of experts, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pimserve.cluster.figures import count, figure, named, ratio, scaled, share
from pimserve.cluster.history import History
from pimserve.cluster.pools import PlacedPool
from pimserve.cluster.report import facts
from pimserve.cluster.report.axes import rate
from pimserve.cluster.report.charts import columns
from pimserve.cluster.report.content import Section, Table
from pimserve.cluster.report.expert_load import ExpertLoad, expert_load
from pimserve.cluster.report.inputs import ReportRun, at
from pimserve.cluster.report.intensity import Roof, Shape, Work, roofs, shapes, share_of_roof, work_of
from pimserve.cluster.report.rooflines import Point, roofline
from pimserve.cluster.report.svg import Picture, picture
from pimserve.device_models.operators import CATEGORIES
from pimserve.scheduler.fleet import DECODE, PREFILL

_ROOFLINE = (
    "FLOPs and bytes are of one device, worked out from the model's operators at the run's mean step, and the rate is "
    "what the cost plan gives for them: a point lies below its roof as far as kernels, launches or DRAM stay below "
    "nominal figures. Experts that run on two units side by side may pass the roof of each; their share is of both."
)
_NOTHING = "No step was executed: there is no roofline and no expert load."
_STATIONARY = (
    "Matrix products run where the weights lie and move none of them, so they have no place in the roofline; nor has "
    "attention of prompts, whose keys and values are at hand. The rate is per chip, while its attention is busy."
)
_EXPERTS = (
    "A run keeps times, not who chose whom: this is the law by which it drew them, and layers drawn anew from it with "
    "the run's seed."
)


def device_sections(run: ReportRun) -> list[Section]:
    """Roofline, expert load, and what the device says of itself."""
    history = run.history
    tables = _facts(run)
    if history is None:
        why = f"No roofline and no expert load: {run.absent['history']}."
        return [Section("device", "Device", [why], tables=tables)]
    if not any(map(len, history.spans)):
        return [Section("device", "Device", [_NOTHING], tables=tables)]
    text, pictures = [_ROOFLINE], []
    rows: list[Table] = []
    popularity: list[Picture] = []
    loads: list[Table] = []
    for pool in history.pools:
        both = [(mixed, shape) for mixed, shape in zip((False, True), shapes(history, pool), strict=True) if shape]
        steps = [(mixed, shape, work_of(history, pool, shape)) for mixed, shape in both]
        suffix = f"-{pool.name}" if pool.name else ""
        of_pool = f", {pool.name} pool" if pool.name else ""
        shown = _roofline(
            f"roofline{suffix}",
            f"Roofline of {pool.label}{of_pool}",
            roofs(history, pool),
            [(m, w) for m, _, w in steps],
        )
        if pool.replica.plan.pipeline is not None:
            text.append(_STATIONARY)
        if shown is not None:
            pictures.append(shown)
        rows += [
            _work_table(f"Operators of {_step(mixed, shape)}{of_pool}", work, history, pool)
            for mixed, shape, work in steps
        ]
        load = expert_load(history, pool, both[0][1]) if both else None
        if load is not None:
            if not popularity:  # the same in all pools
                popularity.append(_popularity("experts", "Popularity of experts", load))
            loads.append(_expert_table(load, f"Load of experts in {_step(*both[0])}{of_pool}"))
    found = [Section("device", "Device and roofline", text, pictures=pictures, tables=[*rows, *tables])]
    if popularity:
        found.append(Section("experts", "Experts", [_EXPERTS], pictures=popularity, tables=loads))
    return found


def _facts(run: ReportRun) -> list[Table]:
    """What the devices of each pool say of themselves."""
    pools = at(run.summary, "pools")
    of = {"": run.summary} if not isinstance(pools, Mapping) else {name: pools.get(name) for name in (PREFILL, DECODE)}
    found = []
    for name, part in of.items():
        told = at(part, "device_facts")
        if isinstance(told, Mapping) and told:
            found.append(facts.device_table(told, f"Device, {name} pool" if name else "Device"))
    return found


def _step(mixed: bool, shape: Shape) -> str:
    decodes = f"{count(shape.decodes)} decoding"
    if not mixed:
        return f"the mean decoding step ({decodes}, {count(shape.context)} tokens of context)"
    return (
        f"the mean step with prompts ({decodes}, {count(shape.prompts)} x {count(shape.prompt_tokens)} prompt tokens)"
    )


def _work_table(caption: str, work: list[Work], history: History, pool: PlacedPool) -> Table:
    highest = roofs(history, pool)
    rows = [
        (
            each.name,
            f"{rate(each.flops)}FLOP",
            f"{rate(each.moved)}B",
            figure(each.intensity),
            scaled(each.seconds, "s"),
            f"{rate(each.flop_per_s or 0.0)}FLOP/s",
            share(share_of_roof(each, highest)),
            " + ".join(map(named, each.units)),
        )
        for each in work
    ]
    columns = ("", "FLOPs", "bytes", "Op/B", "time", "reached", "of roof", "on")
    return Table(caption, columns, rows)


def _expert_table(load: ExpertLoad, caption: str) -> Table:
    n = len(load.share)
    rows = [
        ("tokens in the step", count(load.tokens)),
        ("experts", f"{n}, {load.top_k} per token"),
        ("experts that any token chose, mean", figure(load.active)),
        ("most popular expert", f"{share(float(load.share.max()))} of tokens"),
        ("least popular expert", f"{share(float(load.share.min()))} of tokens"),
    ]
    note = ""
    if load.groups is not None:
        rows.append(("groups of devices with experts of their own", count(load.groups)))
    if load.busiest is not None:
        rows += [
            ("tokens of the busiest group over the mean", ratio(load.busiest)),
            ("the same, in one layer of a hundred", ratio(load.busiest_p99)),
        ]
    elif load.groups is not None:
        note = "No device is busier than others: each holds a slice of every expert."
    return Table(caption, ("", ""), rows, note)


def _roofline(
    key: str, title: str, roofs: Sequence[Roof], steps: Sequence[tuple[bool, Sequence[Work]]]
) -> Picture | None:
    """Operators under the roofs of a device.

    Args:
        key: id of the picture.
        title: heading.
        roofs: of the device's units.
        steps: of each mean step, whether it holds prompts, and what operators do in it.
    """
    points = []
    for mixed, work in steps:
        for category in CATEGORIES:
            mine = [each for each in work if each.category == category]
            flops, moved, seconds = (
                sum(getattr(each, part) for each in mine) for part in ("flops", "moved", "seconds")
            )
            if flops and moved and seconds:
                points.append(Point(named(category), flops / moved, flops / seconds, filled=not mixed))
    if not points or not roofs:
        return None
    groups = [named(category) for category in CATEGORIES]
    alt = "Roofline, FLOP/s over FLOPs per byte. Roofs: " + "; ".join(
        f"{roof.label} {rate(roof.bytes_per_s)}B/s" + (f", {rate(roof.peak)}FLOP/s" if roof.peak else "")
        for roof in roofs
    )
    alt += ". Operators: " + "; ".join(
        f"{point.label}{'' if point.filled else ' in steps with prompts'} {figure(point.intensity)} FLOPs per byte, "
        f"{rate(point.flop_per_s)}FLOP/s"
        for point in points
    )
    caption = (
        "Roofs are nominal bandwidth and peak of one device. Filled: the mean step that only decodes; hollow: the mean "
        "step with prompts in it."
    )
    return picture(key, title, f"{alt}.", caption, roofline(roofs, points, groups), height_in=3.9)


def _popularity(key: str, title: str, load: ExpertLoad) -> Picture:
    """How popular each expert is."""
    n = len(load.share)
    even = load.top_k / n
    order = np.argsort(-load.share)
    alt = (
        f"Share of tokens that choose each of {n} experts: most {share(float(load.share.max()))} (expert {order[0]}), "
        f"least {share(float(load.share.min()))} (expert {order[-1]}); {share(even)} if all were alike."
    )
    caption = "Probability that a token chooses the expert in a layer; they sum to the experts per token."
    if load.busiest is not None:
        caption += " Columns of one shade lie on the same group of devices."
    draw = columns(100 * load.share, "% of tokens", "expert", 100 * even, load.groups or 1)
    return picture(key, title, alt, caption, draw)
