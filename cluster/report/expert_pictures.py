"""How popular experts are, and what load they give to devices, as pictures and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pimserve.cluster.base.figures import ABSENT, count, figure, ratio, share
from pimserve.cluster.base.tables import Table, table_of
from pimserve.cluster.report.charts import columns
from pimserve.cluster.report.expert_load import ExpertLoad
from pimserve.cluster.report.parts import Part
from pimserve.cluster.report.svg import Picture, picture


def popularity(parts: Sequence[Part]) -> list[Picture]:
    """How popular each expert is: a picture for each law and way to lay experts on devices that there is."""
    alike: dict[tuple[object, ...], list[Part]] = {}
    for part in parts:
        assert part.load is not None
        # The pools of one run have one law: the first tells how experts lie.
        lies = _groups(part.load) if part.run else None
        alike.setdefault((part.load.share.tobytes(), lies), []).append(part)
    pictures = []
    for number, mine in enumerate(alike.values()):
        names = ", ".join(part.name for part in mine if part.run)
        title = f"{names}: popularity of experts" if names else "Popularity of experts"
        load = mine[0].load
        assert load is not None
        pictures.append(_popularity(f"experts-{number + 1}" if number else "experts", title, load))
    return pictures


def _groups(load: ExpertLoad) -> int:
    """Groups of devices with experts of their own side by side, where that makes a difference."""
    return load.groups if load.groups is not None and load.busiest is not None and load.in_order else 1


def _popularity(key: str, title: str, load: ExpertLoad) -> Picture:
    n = len(load.share)
    even = load.top_k / n
    order = np.argsort(-load.share)
    alt = (
        f"Share of tokens that choose each of {n} experts: most {share(float(load.share.max()))} (expert {order[0]}), "
        f"least {share(float(load.share.min()))} (expert {order[-1]}); {share(even)} if all were alike."
    )
    caption = "Probability that a token chooses the expert in a layer; they sum to the experts per token."
    if _groups(load) > 1:
        caption += " Columns of one shade lie on the same group of devices."
    draw = columns(100 * load.share, "% of tokens", "expert", 100 * even, _groups(load))
    return picture(key, title, alt, caption, draw)


def load_table(parts: Sequence[Part]) -> Table:
    """Loads of experts, a column for each part; that of a single run's part says in which step."""
    loads = [part.load for part in parts if part.load is not None]
    rows = [
        ("tokens in the step, or micro-batch", *(count(load.tokens) for load in loads)),
        ("experts", *(f"{len(load.share)}, {load.top_k} per token" for load in loads)),
        ("experts that any token chose, mean", *(figure(load.active) for load in loads)),
        ("most popular expert", *(f"{share(float(load.share.max()))} of tokens" for load in loads)),
        ("least popular expert", *(f"{share(float(load.share.min()))} of tokens" for load in loads)),
        ("groups of devices with experts of their own", *(count(load.groups) for load in loads)),
        ("tokens of the busiest group over the mean", *(ratio(load.busiest) for load in loads)),
        ("the same, in one layer of a hundred", *(ratio(load.busiest_p99) for load in loads)),
    ]
    rows = [row for row in rows if set(row[1:]) != {ABSENT}]
    note = ""
    if any(load.groups is not None and load.busiest is None for load in loads):
        note = "No device is busier than others: each holds a slice of every expert."
    if not parts[0].run:
        return table_of(f"Load of experts in {parts[0].steps[0].description}{parts[0].of}", ("", ""), rows, note)
    if note:
        note = "Where there is one group, no device is busier than others: each holds a slice of every expert."
    rows.insert(0, ("mean step", *("with prompts" if part.steps[0].mixed else "decoding" for part in parts)))
    return table_of("Load of experts", ("", *(part.name for part in parts)), rows, note)
