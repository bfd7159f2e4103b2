"""The systems that the Duplex paper compares, compiled: devices, splits, links and the requests that fit.

Section numbers are those of arXiv 2409.01141. What the paper leaves open is decided by what reproduces its figures
and said here: two all-reduces per block over the devices that hold partial sums, none more for sliced experts; 3 us
per ring hop inside a node, and no all-reduce but rings; 400 GB/s and 15 us per dispatch or combine between nodes, a
copy for every expert that a token picks outside its node; no cost for the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal, NamedTuple

from pimserve.cluster.scenario.interconnect import Interconnect
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import OperatorDevice
from pimserve.device_models.duplex import decided_as_in_the_paper
from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.model import BYTES_PER_ELEMENT, ModelSpec
from pimserve.device_models.operators import ACTIVATION_BYTES, AllReduce, Operator, Parallelism, operators_of
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.registry import load_device
from pimserve.device_models.routing import ExpertPools, Routing

ModelName = Literal["Mixtral", "GLaM", "Grok1", "OPT", "Llama3"]
MODELS: dict[str, str] = {
    "Mixtral": "mixtral-8x7b",
    "GLaM": "glam-143b",
    "Grok1": "grok-1",
    "OPT": "opt-66b",
    "Llama3": "llama-3-70b",
}
SystemName = Literal[
    "GPU",
    "2xGPU",
    "Duplex",
    "Duplex+PE",
    "Duplex+PE+ET",
    "Bank-PIM",
    "BankGroup-PIM",
    "hetero",
    "hetero, weights duplicated",
    "Duplex-Split",
]
SYSTEMS: tuple[SystemName, ...] = SystemName.__args__  # type: ignore[attr-defined]
LINKS = Interconnect(
    link_gb_per_s=450,
    link_latency_us=3.0,
    node_gb_per_s=400,
    node_latency_us=0.5,
    dispatch_us=15.0,
    one_shot_latency_us=None,
    dispatch="per_pick",
)
SEED = 0

_PRESETS: dict[str, dict[str, str]] = {
    "GPU": {"preset": "h100"},
    "2xGPU": {"preset": "h100"},
    "Duplex": {"preset": "duplex", "processor_selection": "per_layer"},
    "Duplex+PE": {"preset": "duplex", "processor_selection": "co_processing"},
    "Duplex+PE+ET": {"preset": "duplex", "processor_selection": "co_processing"},
    "Duplex-Split": {"preset": "duplex", "processor_selection": "co_processing"},
    "Bank-PIM": {"preset": "duplex-bank-pim"},
    "BankGroup-PIM": {"preset": "duplex-bankgroup-pim"},
    "logic": {"preset": "logic-pim"},
}


class Cluster(NamedTuple):
    """Devices of the system that others are compared with."""

    nodes: int
    devices_per_node: int


@dataclass(frozen=True, eq=False)
class System:
    """One system serving one model.

    `kv_budget_bytes` is what weights leave for the KV cache of one data-parallel group, and `spare_requests` is how
    many requests the system holds beside those in that cache.
    """

    name: SystemName
    plan: CostPlan
    kv_budget_bytes: float
    kv_bytes_per_token: float
    spare_requests: int = 0

    @cached_property
    def pools(self) -> ExpertPools | None:
        """Outcomes of routing, where there are experts."""
        return ExpertPools(self.plan.experts, Routing(), SEED) if self.plan.experts else None

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens that the KV caches of all groups hold."""
        return int(self.kv_budget_bytes / self.kv_bytes_per_token) * self.plan.data_parallel

    def requests_that_fit(self, input_tokens: int, output_tokens: int) -> int:
        """Requests whose KV cache fits when each reserves all of its tokens (section VI)."""
        request_bytes = (input_tokens + output_tokens) * self.kv_bytes_per_token
        return max(0, int(self.kv_budget_bytes / request_bytes)) * self.plan.data_parallel + self.spare_requests


@cache
def build(model: str, cluster: Cluster, name: SystemName) -> System:
    """Compile a system.

    Args:
        model: one of `MODELS`.
        cluster: devices; twice as many for 2xGPU, which fills a node up to 8 and then adds nodes (section VI).
        name: the system.
    """
    spec = load_model(MODELS[model])
    nodes, devices = cluster
    if name in ("hetero", "hetero, weights duplicated"):
        return _hetero(spec, devices // 2, name)
    if name == "Duplex-Split":
        # Half of the devices prefill and half decode, all with a copy of the weights; one request prefills meanwhile.
        return replace(_alike(spec, Parallelism(nodes, devices // 2, devices // 2, "tp"), name), spare_requests=1)
    if name == "2xGPU":
        nodes, devices = (nodes, 2 * devices) if 2 * devices <= 8 else (2 * nodes, devices)
    return _alike(spec, Parallelism(nodes, devices, devices, "tp" if name == "Duplex+PE+ET" else "ep"), name)


def paper_device(name: str) -> OperatorDevice:
    """A device as the paper simulates it: prefill attention with its score matrix in DRAM."""
    device = load_device({**_PRESETS[name], "prefill_attention": "score_matrix"})
    assert isinstance(device, OperatorDevice)
    return device


def paper_plan(name: str, operators: Sequence[Operator], split: Parallelism) -> CostPlan:
    """What steps cost on devices as the paper simulates them, experts divided by its decision table."""
    return decided_as_in_the_paper(paper_device(name).compile(operators, split))


def _alike(model: ModelSpec, split: Parallelism, name: SystemName) -> System:
    operators = operators_of(model, split, lm_head=False)
    device = paper_device(name)
    plan = paper_plan(name, operators, split)
    plan = replace(plan, rows=plan.rows + LINKS.compile(operators, split))
    # Section VI's printed batch of OPT follows when every device holds the vocabulary's two tables whole.
    element = BYTES_PER_ELEMENT[model.dense_dtype]
    dense = model.parameters - model.routed_parameters - model.embedding_parameters
    tables = 2 * model.vocab * model.hidden * element
    routed = model.routed_parameters * BYTES_PER_ELEMENT[model.routed_dtype]
    budget = device.memory_bytes - tables - dense * element / split.tensor - routed / split.devices
    return System(name, plan, split.tensor * budget, model.kv_bytes_per_token)


def _hetero(model: ModelSpec, half: int, name: SystemName) -> System:
    """`half` GPUs for FC layers and prefill attention, as many Logic-PIM devices for the experts and decode attention.

    Moving queries, keys, values and tokens between the halves costs nothing beyond the all-reduces: that fits
    fig. 5(b). With duplicated weights (fig. 5(c)) both halves run experts side by side: the busiest on the GPUs, the
    rest on Logic-PIM, divided so that both take equally long. The paper does not say how; this fits. The partial sums
    of the experts' layer then lie on all devices.
    """
    duplicated = name == "hetero, weights duplicated"
    split = Parallelism(1, half, half, "tp" if duplicated else "ep")
    operators = operators_of(model, split, lm_head=False)
    gpu = paper_plan("GPU", operators, split)
    device = paper_device("logic")
    pim = paper_plan("logic", operators, split)
    experts = pim.experts
    # Of one group on two units at once, each where times (not the paper's table) say.
    if duplicated and isinstance(experts, ExpertTerm):
        experts = replace(experts, selection="co_processing", spaces=experts.experts)
    vector = model.hidden * ACTIVATION_BYTES
    sums = [AllReduce(model.layers, vector, half), AllReduce(model.layers, vector, 2 * half if duplicated else half)]
    links = LINKS.compile(sums, Parallelism(1, 2 * half, half))
    plan = replace(gpu, devices=2 * half, units=pim.units, rows=gpu.rows + links, decode=pim.decode, experts=experts)
    routed = model.routed_parameters * BYTES_PER_ELEMENT[model.routed_dtype]
    return System(name, plan, half * device.memory_bytes - routed, model.kv_bytes_per_token)
