"""Holds pools for prefill and decode against DistServe's published figures (`pimserve validate pools`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pimserve.cluster.validation.disaggregation_formula import Formula
from pimserve.cluster.validation.distserve_formula import MeanTtft
from pimserve.cluster.validation.distserve_rate import HighestRate, StepMs
from pimserve.cluster.validation.targets import Finding, Target, package_file, read_targets

QUANTITIES: Mapping[str, type[Formula]] = {
    "mean_ttft_s": MeanTtft,
    "step_ms": StepMs,
    "highest_rate_per_s": HighestRate,
}


def published_pools() -> list[Target]:
    """The figures that come with the package."""
    return read_targets(package_file("distserve_cases.json"), "case")


def judge_pools(target: Target) -> Finding:
    """Compute a figure, and hold it against the published one."""
    formula = QUANTITIES[target.quantity].model_validate(target.case)
    ours = formula.value()
    return Finding(
        id=target.id,
        quantity=target.quantity,
        case=", ".join(f"{key} {value}" for key, value in target.case.items()),
        published=target.published,
        ours=ours,
        ratio=target.ratio(ours),
        tolerance=target.tolerance,
        tolerance_kind=target.tolerance_kind,
        passed=target.accepts(ours),
        method=formula.method,
        note=target.provenance,
    )


def validate_pools(progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Compute all figures, in the file's order.

    Args:
        progress: takes (figures that are done, all of them).
    """
    targets, findings = published_pools(), []
    for done, target in enumerate(targets, 1):
        findings.append(judge_pools(target))
        if progress is not None:
            progress(done, len(targets))
    return findings
