"""How figures of the Duplex paper were read where it leaves a choice, and why the ones that are missed are missed."""

from __future__ import annotations

from pimserve.cluster.validation.targets import Target


def notes(target: Target, figure: int | None, *, passed: bool) -> list[str]:
    return []
