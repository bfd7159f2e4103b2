"""The AIMC cost plan against the event-driven model, over a grid of models, mappings, batches and prompts.

A decode step of B requests that each attend to c tokens, and the prompt pass of B requests of s tokens each, with the
unit costs of the realistic preset on small chips, so that every resource bounds some of the points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from pimserve.cluster.validation.targets import package_file, read_list
from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.graph import Sequence as Request
from pimserve.device_models.aimc.event.simulate import simulate
from pimserve.device_models.aimc.mapping import Mapping, MappingSpec, Strategy, map_network
from pimserve.device_models.aimc.network import Network, network_of
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.serving import plan_of
from pimserve.device_models.aimc.walk import Walker
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.registry import load_device

Step = Literal["decode", "prompt"]
BRACKET = (0.78, 1.05)  # event-driven model over T1 + (B - 1) w in the reference simulator's cases
STRATEGIES: tuple[Strategy, ...] = ("moe_separated", "greedy_in_order", "greedy_util")
DECODES = tuple((requests, context) for requests in (1, 2, 4, 8, 16, 32, 64) for context in (2, 64, 512))
_PROMPT_LENGTHS = {1: (1, 16, 64, 256, 512), 2: (64, 256), 4: (16, 64), 8: (64,), 16: (16,), 64: (1, 4)}  # by requests
PROMPTS = tuple((requests, tokens) for requests, lengths in _PROMPT_LENGTHS.items() for tokens in lengths)
_PER_PS = 1000


@dataclass(frozen=True, slots=True)
class Setting:
    """A small model on small chips."""

    name: str
    model: dict[str, Any]
    chip: dict[str, Any]
    chips: int = 1


@dataclass(frozen=True, slots=True)
class Point:
    """One step, as both see it; ps."""

    setting: str
    strategy: Strategy
    step: Step
    requests: int
    tokens: int
    event_ps: int
    plan_ps: float

    @property
    def ratio(self) -> float:
        """Event-driven model over plan."""
        return self.event_ps / self.plan_ps


_UNITS = {"digital_units": 8, "attention_units": 2}
SETTINGS = tuple(Setting(**row) for row in read_list(package_file("aimc_settings.json"), "setting"))


def grid(
    settings: Sequence[Setting] = SETTINGS,
    strategies: Sequence[Strategy] = STRATEGIES,
    decodes: Sequence[tuple[int, int]] = DECODES,
    prompts: Sequence[tuple[int, int]] = PROMPTS,
) -> Iterator[Point]:
    """Points of the grid; `decodes` are (requests, context tokens), `prompts` (requests, prompt tokens)."""
    for setting in settings:
        spec, model = _spec(setting), _model(setting)
        network, chip = network_of(model), spec.chips(setting.chips)
        for strategy in strategies:
            mapping = map_network(network, chip, MappingSpec(strategy=strategy))
            plan = _plan(network, chip, mapping)
            for requests, context in decodes:
                event = simulate(network, chip, mapping, [Request(1, 1, context - 1)] * requests).makespan_ps
                plan_ps = decode_fs(plan, requests, context) / _PER_PS
                yield Point(setting.name, strategy, "decode", requests, context, event, plan_ps)
            for requests, tokens in prompts:
                event = simulate(network, chip, mapping, [Request(tokens, 1)] * requests).makespan_ps
                plan_ps = prompt_fs(plan, requests, tokens) / _PER_PS
                yield Point(setting.name, strategy, "prompt", requests, tokens, event, plan_ps)


def decode_fs(plan: CostPlan, requests: int, context: int) -> int:
    """The plan's time of a decode step of `requests` that attend to `context` tokens each."""
    return evaluate(plan, shape_of(plan, requests, requests * context)).duration_fs


def prompt_fs(plan: CostPlan, requests: int, tokens: int) -> int:
    """The plan's time of a step with `requests` prompts of `tokens` tokens and nothing else."""
    return evaluate(plan, shape_of(plan, 0, 0, [(tokens, 0)] * requests, requests)).duration_fs


def median_error(points: Sequence[Point]) -> float:
    """Median over points of the plan's relative error."""
    return median(abs(1 / point.ratio - 1) for point in points)


def within(points: Sequence[Point], bracket: tuple[float, float] = BRACKET) -> float:
    """Share of points whose ratio lies in the bracket."""
    return sum(bracket[0] <= point.ratio <= bracket[1] for point in points) / len(points)


def _spec(setting: Setting) -> AimcSpec:
    usual = load_device("aimc-realistic").spec
    assert isinstance(usual, AimcSpec)
    # Of few tiles, but with the unit costs of a whole chip, hops among them.
    costs = {key: value for key, value in usual.costs.model_dump().items() if key.startswith("hop_")}
    spec = load_device({"preset": "aimc-realistic", **_UNITS, **setting.chip, "costs": costs}).spec
    assert isinstance(spec, AimcSpec)
    return spec


def _model(setting: Setting) -> ModelSpec:
    shape = {"layers": 4, "hidden": 512, "vocab": 2048, "max_model_len_tokens": 4096, **setting.model}
    return ModelSpec.model_validate({"name": setting.name, "title": setting.name, **shape})


def _plan(network: Network, chip: Chip, mapping: Mapping) -> CostPlan:
    experts = max(len(block.experts) for block in network.blocks)
    return plan_of(Walker(PlacedNetwork(network, chip, mapping), [(1.0,) * experts]).walk(), chip, idle_gating=1.0)
