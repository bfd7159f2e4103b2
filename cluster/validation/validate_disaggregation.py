"""Holds the published formulas of attention-FFN disaggregation against published figures (`pimserve validate`)."""

from __future__ import annotations

from pathlib import Path

from pimserve.cluster.validation.disaggregation_case import PUBLISHED, Case, read_disaggregation
from pimserve.cluster.validation.targets import Finding, package_file


def published_disaggregation() -> list[Case]:
    """The cases that come with the package."""
    return read_disaggregation(package_file(PUBLISHED))


def judge_disaggregation(case: Case) -> Finding:
    """Compute the figure of a case, and hold it against the published one."""
    target, ours = case.target, case.formula.value()
    notes = (case.formula.note(), target.provenance)
    return Finding(
        id=target.id,
        quantity=target.quantity,
        case=case.describe(),
        published=target.published,
        ours=ours,
        ratio=target.ratio(ours),
        tolerance=target.tolerance,
        tolerance_kind=target.tolerance_kind,
        passed=target.accepts(ours),
        method=case.formula.method,
        note="; ".join(filter(None, notes)),
    )


def validate_disaggregation(cases_path: Path | None = None) -> list[Finding]:
    """Compute all cases of a file, in its order.

    Args:
        cases_path: a file in the form of the package's own, or None for that one.

    Raises:
        InputError: the file is malformed, or a case asks for something unknown; names file and case.
    """
    cases = published_disaggregation() if cases_path is None else read_disaggregation(cases_path)
    return [judge_disaggregation(case) for case in cases]
