"""Holds the Duplex device model against the figures of arXiv 2409.01141 (`pimserve validate duplex`)."""

from __future__ import annotations

from pathlib import Path

from pimserve.cluster.validation.duplex_answers import answer
from pimserve.cluster.validation.duplex_metric import describe, read_metric
from pimserve.cluster.validation.duplex_notes import notes
from pimserve.cluster.validation.targets import Finding, Target, package_file, read_targets
from pimserve.errors import InputError

PUBLISHED = "duplex_targets.json"


def published_targets() -> list[Target]:
    """Targets that come with the package: every number of the paper's text and part of the bars of its figures."""
    return read_targets(package_file(PUBLISHED))


def judge(target: Target) -> Finding:
    """Recompute one target.

    Raises:
        InputError: its quantity or setting is unknown or out of range; names file and target.
    """
    metric = read_metric(target)
    try:
        ours = answer(target, metric)
    except InputError as error:
        if error.where == target.where:
            raise
        raise InputError(target.where, str(error)) from None
    passed = target.accepts(ours.value)
    return Finding(
        id=target.id,
        quantity=target.quantity,
        case=describe(target),
        published=target.published,
        ours=ours.value,
        ratio=target.ratio(ours.value),
        tolerance=target.tolerance,
        tolerance_kind=target.tolerance_kind,
        passed=passed,
        method=ours.method,
        note="; ".join(part for part in (ours.note, *notes(target, metric, passed=passed)) if part),
    )


def validate_duplex(targets_path: Path | None = None) -> list[Finding]:
    """Recompute all targets of a file, in its order.

    Args:
        targets_path: a file in the form of the package's own, or None for that one.

    Raises:
        InputError: the file is malformed, or a target asks for something unknown; names file and target.
    """
    targets = published_targets() if targets_path is None else read_targets(targets_path)
    return [judge(target) for target in targets]
