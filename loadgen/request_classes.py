"""Classes of requests: what share each has, whose they are, how long they are, and which limits hold for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.length_pairs import LengthsSpec
from pimserve.loadgen.lengths import Tokens, drawn
from pimserve.loadgen.prefix import PrefixSpec
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.spec import Spec
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces.trace_labels import TraceLabels
from pimserve.loadgen.turns import Turns

MOST_CLASSES = 16
"""Most classes of a workload: each has figures, and series of metrics, of its own."""
ClassIds = NDArray[np.int8]
"""Class of each request, by its number from 1 up in the workload's order; 0: of none."""
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_INT32 = 2**31
_SHOWN = 5  # labels, in messages


class ClassSpec(Spec):
    """A class of requests."""

    name: _Name = Field(description="what figures and metrics call it; each once")
    share: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="how many of the requests it has, relative to the shares of the others (default: 1)",
    )
    labels: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="in place of share: the rows of the trace with one of these labels, of column trace.label_column",
    )
    priority: int = Field(
        0,
        ge=-_INT32,
        lt=_INT32,
        description="lower is served earlier, as in vLLM, by scheduler.policy: priority; kept with the requests",
    )
    tenant: _Name | None = Field(None, description="who sends them (default: the name of the class)")
    tenant_weight: int = Field(
        1,
        ge=1,
        le=1000,
        description="policy vtc: parts of the service that the tenant is due, where others have as many as their own",
    )
    lengths: LengthsSpec | None = Field(
        None, description="their lengths (default: those of workload.lengths, of the trace or the preset)"
    )
    max_tokens: Tokens | None = Field(
        None, description="most tokens of an output that they declare (default: workload.max_tokens)"
    )
    slo: SloSpec | None = Field(None, description="their limits, all of them (default: those of slo)")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.share is not None and self.labels is not None:
            raise ValueError("share has no effect beside labels; leave one of them out")
        if self.lengths is not None and self.lengths.from_trace:
            raise ValueError("lengths of kind 'trace' are those of workload.lengths: leave lengths of the class out")
        if self.slo is not None and any(limit.latency == "itl" for limit in self.slo.at_percentiles()):
            raise ValueError("percentiles of itl are known of all requests together: limit them in slo of the scenario")
        return self

    @property
    def owner(self) -> str:
        """Its tenant."""
        return self.tenant or self.name


def all_have_lengths(classes: object) -> bool:
    """Whether every class, as given or checked, has lengths of its own."""
    if not isinstance(classes, list | tuple) or not classes:
        return False
    return all((each.get("lengths") if isinstance(each, dict) else each.lengths) is not None for each in classes)


def check_classes(classes: Sequence[ClassSpec]) -> None:
    """Raises ValueError unless classes go together: names and labels are there once, all have labels or none, and those
    of one tenant have one weight."""
    names = [each.name for each in classes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"classes: two are called {twice[0]!r}")
    weights: dict[str, int] = {}
    for each in classes:
        if each.tenant_weight != weights.setdefault(each.owner, each.tenant_weight):
            both = f"{weights[each.owner]} and {each.tenant_weight}"
            raise ValueError(f"classes: tenant {each.owner!r} has tenant_weight {both}; give all of its classes one")
    labels = [label for each in classes for label in each.labels or ()]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"classes: label {twice[0]!r} is there twice")
    without = [each.name for each in classes if each.labels is None]
    if labels and without:
        raise ValueError(f"classes: all need labels, or none; {without[0]} has none")


@dataclass(frozen=True)
class Rows:
    """The requests of a workload, as classes are told apart by.

    `n`: how many. `turns`: of sessions. `labels`: of the trace's rows, which the requests are, again and again where
    there are more of them. `order`: (n,) the row of each request; None: in the order of the trace.
    """

    n: int
    turns: Turns | None
    labels: TraceLabels | None
    order: IntArray | None


def class_ids(classes: Sequence[ClassSpec], rows: Rows, streams: Streams) -> ClassIds:
    """(n,) classes of requests: drawn, all turns of a session alike; or as labels of the trace say.

    Raises:
        InputError: the trace has no labels, or some that are of no class.
    """
    if classes[0].labels is not None:
        return _of_labels(classes, rows)
    session = np.arange(rows.n) if rows.turns is None else rows.turns.session
    number = int(session.max(initial=-1)) + 1
    of_each = 1 + drawn(streams.rng("classes"), [each.share or 1.0 for each in classes], number)
    return of_each[session].astype(np.int8)


def with_own_lengths(
    classes: Sequence[ClassSpec],
    ids: ClassIds,
    lengths: tuple[IntArray, IntArray],
    streams: Streams,
    prefix: PrefixSpec | None,
) -> tuple[IntArray, IntArray]:
    """(n,) input and output lengths where classes have laws of their own, each with random streams of its own.

    Args:
        classes: of the workload.
        ids: of its requests.
        lengths: of all requests, as if they had no class.
        streams: of the workload.
        prefix: what prompts have in common, before the lengths that are drawn.
    """
    inputs, outputs = (some.copy() for some in lengths)
    shared = 0 if prefix is None else prefix.system_tokens + prefix.shared_tokens
    for number, each in enumerate(classes, start=1):
        if each.lengths is not None:
            rows = np.flatnonzero(ids == number)
            laws = each.lengths if prefix is None else prefix.lengths(each.lengths)
            own, outputs[rows] = laws.sample(streams.within(f"class {each.name}"), len(rows), None, None)
            inputs[rows] = shared + own
    return inputs, outputs


def declared_tokens(
    most: int | None, classes: Sequence[ClassSpec], ids: ClassIds | None, outputs: IntArray
) -> tuple[IntArray | None, IntArray]:
    """(n,) most tokens of outputs that requests declare, 0 of those that do not, and (n,) outputs that they then get.

    None in place of the former if none of them declares any.

    Args:
        most: of those whose class says nothing.
        classes: of the workload.
        ids: of its requests; None: they have no class.
        outputs: (n,) lengths that requests want.
    """
    of_class = np.array([most or 0, *(each.max_tokens or most or 0 for each in classes)], np.int64)
    if not of_class.any():
        return None, outputs
    declared = of_class[np.zeros(len(outputs), np.int8) if ids is None else ids]
    return declared, np.where(declared > 0, np.minimum(outputs, declared), outputs)


def trace_tokens(classes: Sequence[ClassSpec], ids: ClassIds, inputs: IntArray) -> IntArray:
    """(n,) input tokens that requests have from a trace: none of classes with laws of their own."""
    own = [number for number, each in enumerate(classes, start=1) if each.lengths is not None]
    return np.where(np.isin(ids, own), 0, inputs)


def describe(classes: Sequence[ClassSpec]) -> str:
    """In a few words."""
    if classes[0].labels is not None:
        return f"classes {', '.join(each.name for each in classes)} by labels of the trace"
    total = sum(each.share or 1.0 for each in classes)
    return "classes " + ", ".join(f"{each.name} {(each.share or 1.0) / total:.3g}" for each in classes)


def _of_labels(classes: Sequence[ClassSpec], rows: Rows) -> ClassIds:
    where = "workload.classes"
    if rows.labels is None:
        raise InputError(
            where, "labels need a trace whose rows have them: workload.trace.label_column names the column"
        )
    number_of = {label: number for number, each in enumerate(classes, start=1) for label in each.labels or ()}
    of_label = np.array([number_of.get(label, 0) for label in rows.labels.names], np.int8)
    codes = np.resize(rows.labels.codes, rows.n)
    ids = of_label[codes if rows.order is None else codes[rows.order]]
    if not ids.all():
        has = {rows.labels.names[code] for code in np.unique(codes[of_label[codes] == 0]).tolist()}
        shown = ", ".join(repr(label[:40]) for label in sorted(has)[:_SHOWN])
        more = ", ..." if len(has) > _SHOWN else ""
        raise InputError(where, f"rows of the trace have labels that are of no class: {shown}{more}")
    return ids
