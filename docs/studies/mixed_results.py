"""Reads the results of the study of mixed replicas: the best shape of a system, and fleets of equal size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixed_systems import CONVERSATION, MODELS, RELAXED, SYSTEMS, knobs

Cell = Mapping[str, Any]

FLEET = 20  # of the largest replica
USUAL_BUDGET = 2048  # tokens of a step, as vLLM has them
DEVICES, SILICON, POWER = "devices", "silicon", "power"
EQUALS = (DEVICES, SILICON, POWER)


def size(cell: Cell, slo: str, equal: str) -> float:
    """Of a replica: devices, mm2, or W in the mean at its goodput."""
    if equal == POWER:
        return float(cell[slo]["goodput"]["watts"])
    return float(cell["devices" if equal == DEVICES else "mm2"])


def goodput_of(cell: Cell, slo: str = RELAXED) -> float:
    """Goodput of a replica, requests/s; 0 where it does not keep the SLO at any rate."""
    kept = cell.get(slo, {}).get("goodput")
    return float(kept["rate_per_s"]) if kept else 0.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas of a system within a budget; `share`: of the budget that they take."""

    cell: Cell
    replicas: int
    goodput: float
    share: float


class Study:
    """The results, by what they are of."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self._cells: list[Cell] = [cell for cell in results["cells"] if "refused" not in cell]
        self.refused: list[Cell] = [cell for cell in results["cells"] if "refused" in cell]
        self.sensitivity: list[Cell] = results["sensitivity"]
        self.copies: list[Cell] = results["copies"]
        self.traces: list[Cell] = results["traces"]
        self.knobs = {model: {knob.name: knob for knob in knobs(model)} for model in MODELS}
        self.models = [name for name in MODELS if any(cell["model"] == name for cell in self._cells)]

    @property
    def stabilities(self) -> list[str]:
        """Of all runs at a relaxed goodput."""
        found = (cell[RELAXED]["goodput"] for cell in self._cells)
        return [figures["stability"] for figures in found if figures]

    def shapes(self, model: str, system: str, traffic: str) -> list[Cell]:
        """All shapes of a system that were tried."""
        wanted = (model, system, traffic)
        return [cell for cell in self._cells if (cell["model"], cell["system"], cell["traffic"]) == wanted]

    def best(
        self, model: str, system: str, traffic: str = CONVERSATION, slo: str = RELAXED, equal: str = SILICON
    ) -> Cell | None:
        """The shape with the highest goodput for its size; None where none keeps the SLO."""
        kept = [cell for cell in self.shapes(model, system, traffic) if goodput_of(cell, slo)]
        return max(kept, key=lambda cell: goodput_of(cell, slo) / size(cell, slo, equal), default=None)

    def density(
        self, model: str, system: str, traffic: str = CONVERSATION, slo: str = RELAXED, equal: str = SILICON
    ) -> float:
        """Goodput of the best shape for its size; 0 where none keeps the SLO."""
        cell = self.best(model, system, traffic, slo, equal)
        return 0.0 if cell is None else goodput_of(cell, slo) / size(cell, slo, equal)

    def budget(self, model: str, traffic: str, slo: str, equal: str) -> float:
        """Of a fleet: so many times the largest of the systems' best replicas."""
        best = [self.best(model, system, traffic, slo, equal) for system in SYSTEMS]
        return FLEET * max(size(cell, slo, equal) for cell in best if cell is not None)

    def fleet(self, model: str, system: str, traffic: str, slo: str, equal: str) -> Fleet | None:
        """Whole replicas of the shape that has the highest goodput within the budget."""
        budget = self.budget(model, traffic, slo, equal)
        fleets = []
        for cell in self.shapes(model, system, traffic):
            if goodput_of(cell, slo):
                one = size(cell, slo, equal)
                replicas = int(budget // one)
                fleets.append(Fleet(cell, replicas, replicas * goodput_of(cell, slo), replicas * one / budget))
        return max(fleets, key=lambda fleet: fleet.goodput, default=None)

    def ratio(self, model: str, system: str, traffic: str, slo: str, equal: str, to: str = "gpu") -> float | None:
        """Goodput of a fleet over that of another system's; None where either keeps no SLO."""
        one, other = (self.fleet(model, name, traffic, slo, equal) for name in (system, to))
        return None if one is None or other is None or not other.goodput else one.goodput / other.goodput

    def base(self, model: str) -> Cell:
        """Duplex + AIMC of a model with all assumptions as they are."""
        return next(entry for entry in self.sensitivity if entry["model"] == model and entry["knob"] is None)

    def end(self, model: str, name: str, end: str) -> Cell | None:
        """The same with one assumption at one end; None where that is the base, or cannot be."""
        wanted = (model, name, end)
        found = [entry for entry in self.sensitivity if (entry["model"], entry["knob"], entry["end"]) == wanted]
        return found[0] if found and "refused" not in found[0] else None

    def swing(self, model: str, name: str) -> tuple[float, float]:
        """Ratio of largest to least of both ends and the base: of the goodput, and of J per token at half load."""
        entries = [self.base(model), *(entry for end in ("low", "high") if (entry := self.end(model, name, end)))]
        goodputs = [entry["goodput"]["rate_per_s"] if entry["goodput"] else 0.01 for entry in entries]
        joules = [entry["half_load"]["joules_per_token"] for entry in entries]
        return max(goodputs) / min(goodputs), max(joules) / min(joules)

    def by_weight(self, model: str) -> list[str]:
        """Assumptions, the one that moves a figure most first."""
        return sorted(self.knobs[model], key=lambda name: -max(self.swing(model, name)))


def replica_label(cell: Cell) -> str:
    """What a replica is of."""
    counts = " + ".join(str(group["devices"]) for group in cell["groups"])
    notes = [f"TP{cell['tensor']}"] if cell["tensor"] else []
    notes += [f"m{cell['micro_batches']}"] if "micro_batches" in cell else []
    notes += [f"{cell['budget']} tokens"] if cell["budget"] != USUAL_BUDGET else []
    return f"{counts} ({', '.join(notes)})" if notes else counts


def bottleneck(figures: Mapping[str, Any]) -> str:
    """The units that are busiest at a rate, and what attention's devices wait for."""
    busy = sorted(figures["busy"].items(), key=lambda entry: -entry[1])[:2]
    parts = [f"{_UNITS.get(unit, unit)} {100 * share:.0f} %" for unit, share in busy]
    waits = figures["waits"]
    if waits:
        parts.append(f"waits: link {100 * waits['link']:.0f} %, experts {100 * waits['experts']:.0f} %")
    return "; ".join(parts)


_UNITS = {
    "xpu": "xPU",
    "logic_pim": "Logic-PIM",
    "link": "all-reduce",
    "experts_xpu": "experts' xPU",
    "experts_logic_pim": "experts' Logic-PIM",
    "experts_busiest_tile": "experts' busiest tile",
    "busiest_tile": "busiest tile",
    "attention": "attention units",
    "dram": "DRAM",
}


def limit(cell: Cell, slo: str) -> str:
    """What the next higher rate misses."""
    missed = cell[slo]["missed"]
    if missed is None:
        return "-"
    lowest = min(missed["met"], key=lambda name: missed["met"][name])
    short = missed["met"][lowest] < 0.9
    return lowest.upper() if short else "saturated" if missed["stability"] == "saturated" else "KV cache"
