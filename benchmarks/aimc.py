"""The event-driven model of 3D AIMC alone: python aimc.py FACTOR VALUE; prints JSON.

FACTOR is `paper_scale` (VALUE is ignored), or what grows from a base of 4 layers of width 768 and one sequence that
generates 4 tokens after a prompt of one: `layers`, `sequences`, or `prompt`, after which one token is generated. The
graphs are those on which the reference simulator was measured, task for task.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from pimserve.cluster.validation.validate_aimc import published_cases, run_case
from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.graph import COMPAT, Sequence
from pimserve.device_models.aimc.event.simulate import Outcome, simulate
from pimserve.device_models.aimc.mapping import MappingSpec, map_network
from pimserve.device_models.aimc.network import gpt2_like
from pimserve.device_models.aimc.operation_costs import Dram, PlaceholderCosts

_ENOUGH_S = 1.0  # short runs are repeated for so long
_HIDDEN, _VOCAB = 768, 4000


def measure(factor: str, value: int) -> dict[str, float]:
    """Seconds of mapping and simulation, best and median of several where they are few, and tasks of the graph."""
    seconds, spent = [], 0.0
    while not seconds or spent < _ENOUGH_S:
        began = time.perf_counter()
        outcome = _paper_scale() if factor == "paper_scale" else _base(factor, value)
        seconds.append(time.perf_counter() - began)
        spent += seconds[-1]
    return {
        "seconds": min(seconds),
        "median_s": statistics.median(seconds),
        "runs": len(seconds),
        "tasks": sum(outcome.op_counts.values()),
    }


def _paper_scale() -> Outcome:
    """With reading the case: its network of 51.8 G parameters is built and mapped there."""
    return run_case(published_cases()[-1])


def _base(factor: str, value: int) -> Outcome:
    layers = value if factor == "layers" else 4
    sequences = value if factor == "sequences" else 1
    prompt, tokens = (value, 1) if factor == "prompt" else (1, 4)
    network = gpt2_like(
        hidden=_HIDDEN, heads=8, ffn_width=4 * _HIDDEN, layers=layers, vocab=_VOCAB, positions=prompt + tokens
    )
    chip = Chip(128, 64, 512, 512, 16, 4, PlaceholderCosts(), Dram(gb=1, gb_per_s=1000), 20.0)
    mapping = map_network(network, chip, MappingSpec(strategy="greedy_in_order"))
    return simulate(network, chip, mapping, [Sequence(prompt, tokens)] * sequences, rules=COMPAT)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
