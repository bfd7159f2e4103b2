"""What runs write, as documents: summaries as they stand in summary.json."""

from typing import Any

from pimserve.cluster.run import run as running
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.scheduler.simulation import Served


def serve(prepared: Prepared, **how: Any) -> tuple[dict[str, Any], Served]:
    """`serve`, with its summary as a document."""
    summary, served = running.serve(prepared, **how)
    return summary.document(), served


def run(prepared: Prepared, *where: Any, **how: Any) -> dict[str, Any]:
    """`run`, with its summary as a document."""
    return running.run(prepared, *where, **how).document()
