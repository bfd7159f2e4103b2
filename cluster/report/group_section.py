"""Both groups of devices of runs whose routed experts are on devices of their own: what their time went to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pimserve.cluster.base.figures import known, share
from pimserve.cluster.report import charts
from pimserve.cluster.report.content import Section
from pimserve.cluster.report.pictures import Named
from pimserve.cluster.report.svg import Picture, picture
from pimserve.cluster.run.group_schema import TIMES, GroupFigures, Groups
from pimserve.cluster.run.group_tables import GROUPS, group_link_table, group_table, micro_batch_table

_TEXT = (
    "Attention and the KV cache are on one group of devices, routed experts on another, and tokens cross a link to the "
    "experts and back in every MoE layer. Figures are of the whole run."
)
_CAPTION = (
    "Working: with the links among the group's own devices. Waiting for the link: by how much steps are longer than "
    "over links that take no time. Waiting for the other group: the rest of the steps. Without a step: no request, or "
    "the host at work."
)


def group_sections(runs: Sequence[Named]) -> list[Section]:
    """What both groups did, of all runs in one picture, and tables of a single one."""
    mixed = [(run, pool, groups) for run in runs for pool, groups in _groups(run)]
    if not mixed:
        return []
    tables = []
    for _, pool, groups in mixed if len(runs) == 1 else ():
        of = f", {pool} pool" if pool else ""
        found = (group_table(groups), group_link_table(groups.link), micro_batch_table(groups.micro_batches))
        tables += [replace(table, caption=f"{table.caption}{of}") for table in found]
    return [Section("groups", "Groups of devices", [_TEXT], pictures=_time(mixed), tables=tables)]


def _groups(run: Named) -> Iterator[tuple[str, Groups]]:
    """Of each pool that has two, with its name."""
    for pool, figures in run.run.summary.by_pool().items():
        if figures.groups is not None:
            yield pool, figures.groups


def _time(mixed: Sequence[tuple[Named, str, Groups]]) -> list[Picture]:
    """Bars of what each group did with its time."""
    rows, alts = [], []
    for run, pool, groups in mixed:
        for name in GROUPS:
            group: GroupFigures = getattr(groups, name)
            shares = known({part: getattr(group.shares_of_time, part) for part in TIMES})
            if shares:
                label = " ".join(filter(None, (run.name, pool, name)))
                rows.append((label, [shares.get(part, 0.0) for part in TIMES]))
                alts.append(f"{label} " + ", ".join(f"{TIMES[part]} {share(value)}" for part, value in shares.items()))
    if not rows:
        return []
    parts = tuple(TIMES.values())
    draw = charts.bars(rows, parts, "share of time", [share(values[0]) for _, values in rows], share=True)
    alt = f"What groups of devices did with the time of the run: {'; '.join(alts)}."
    height_in = charts.bars_height(len(rows), len(parts))
    return [picture("groups", "Time of groups of devices", alt, _CAPTION, draw, height_in=height_in)]
