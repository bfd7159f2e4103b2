"""How tokens fall on the experts of a run: how popular each is, and what more than the mean the busiest device gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pimserve.arrays import FloatArray
from pimserve.cluster.report.intensity import Shape
from pimserve.cluster.run.history import History
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.evaluate import parts_of, shape_of
from pimserve.device_models.expert_layout import SlotCounts
from pimserve.device_models.expert_picks import draw_counts, mean_share, pick_probabilities
from pimserve.device_models.experts import ExpertTerm

_DRAWS, _STREAM = 512, 5


@dataclass(frozen=True)
class ExpertLoad:
    """Of one MoE layer, in the mean over layers, through which `tokens` tokens go together.

    Args:
        tokens: in the step, or in the largest of its micro-batches.
        top_k: experts that each of them chooses.
        share: (experts,) of tokens that choose each expert; they sum to `top_k`.
        active: experts that any token chose, mean.
        groups: of devices that hold experts; None where experts do not lie on devices in groups.
        in_order: whether groups hold experts by number, as many each.
        busiest: tokens of the busiest group over the mean of the groups, in the mean; None without several.
        busiest_p99: the same at the 99th percentile of layers.
    """

    tokens: int
    top_k: int
    share: FloatArray
    active: float
    groups: int | None
    in_order: bool
    busiest: float | None
    busiest_p99: float | None


def expert_load(history: History, pool: PlacedPool, shape: Shape) -> ExpertLoad | None:
    """Expert load of a pool's replicas in a step; None where the model has no routed experts.

    A run keeps times, not who chose whom: layers are drawn anew from the law of the run (`device_models/routing.py`).
    """
    moe = history.prepared.model.moe
    if moe is None:
        return None
    seed = history.prepared.scenario.run.seed
    weights = history.prepared.scenario.routing.for_model(history.prepared.model).expert_weights(moe.experts, seed)
    laws = np.stack([pick_probabilities(row, moe.top_k) for row in weights])
    step = shape_of(pool.plan, shape.decodes, shape.context, shape.chunks, shape.outputs)
    tokens = max(pool.plan.tokens_of(part) for part in parts_of(pool.plan, step))
    counts = draw_counts(np.random.default_rng([seed, _STREAM]), laws, tokens, -(-_DRAWS // len(laws)))
    term = pool.plan.experts
    slots = () if term is None else term.slots
    placed = SlotCounts(slots).of(np.broadcast_to(counts, (max(len(counts), len(slots)), *counts.shape[1:])))
    counts = counts.reshape(-1, moe.experts)
    groups = term.groups if isinstance(term, ExpertTerm | CrossbarExperts) else None
    ratios = None
    if groups is not None and groups > 1:
        per_group = placed.reshape(-1, groups, placed.shape[2] // groups).sum(axis=2)
        ratios = np.sort(per_group.max(axis=1) / per_group.mean(axis=1))
    return ExpertLoad(
        tokens=tokens,
        top_k=moe.top_k,
        share=np.array(mean_share(weights.tolist(), moe.top_k)),
        active=float((counts > 0).sum(axis=1).mean()),
        groups=groups,
        in_order=not slots,
        busiest=None if ratios is None else float(ratios.mean()),
        busiest_p99=None if ratios is None else float(ratios[int(np.ceil(0.99 * len(ratios))) - 1]),
    )
