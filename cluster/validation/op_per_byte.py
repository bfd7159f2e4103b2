"""Op/B of the operators of a stage, FLOPs per byte moved (arXiv 2409.01141, fig. 4(b))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pimserve.cluster.scenario.steady_state import ClosedLoop
from pimserve.device_models.operators import (
    ACTIVATION_BYTES,
    DecodeAttention,
    Experts,
    Gemm,
    Operator,
    PrefillAttention,
)

Part = Literal["FC", "MoE", "Attn_decode", "Attn_prefill"]
PARTS: tuple[Part, ...] = ("FC", "MoE", "Attn_decode", "Attn_prefill")


def intensity(operators: Sequence[Operator], part: Part, loop: ClosedLoop, data_parallel: int, *, mixed: bool) -> float:
    """FLOPs per byte of one part of a decoding-only or a mixed stage.

    Args:
        operators: what one device runs.
        part: which operators.
        loop: the closed loop; a mixed stage has the mean number of new prompts of stages that have any.
        data_parallel: groups that share the requests.
        mixed: which kind of stage.

    Returns:
        FLOPs per byte; 0 when the operators have no such part.
    """
    tokens = float(loop.requests)
    if mixed:
        any_prompt = 1 - (1 - 1 / loop.output_tokens) ** loop.requests
        prompts = loop.requests / loop.output_tokens / any_prompt
        tokens += prompts * (loop.input_tokens - 1)
    flops = moved = 0.0
    for op in operators:
        if isinstance(op, Gemm) and part == "FC" and op.category == "fc":
            rows = tokens / data_parallel
            flops += op.layers * 2 * rows * op.k * op.n
            weights = op.weight_bytes_per_element * op.k * op.n
            moved += op.layers * (weights + rows * ACTIVATION_BYTES * (op.k + op.n))
        elif isinstance(op, Experts) and part == "MoE":
            inner = op.intermediate / op.slices
            active = op.experts * (1 - (1 - op.top_k / op.experts) ** tokens)
            rows = tokens * op.top_k
            flops += rows * op.matrices * 2 * op.hidden * inner
            # Inputs and outputs of the products, and of the activation function between them.
            per_row = ACTIVATION_BYTES * op.matrices * (op.hidden + 2 * inner)
            moved += active * op.matrices * op.hidden * inner * op.weight_bytes_per_element + rows * per_row
        elif isinstance(op, DecodeAttention) and part == "Attn_decode":
            flops += op.layers * op.flops
            moved += op.layers * op.kv_bytes
        elif isinstance(op, PrefillAttention) and part == "Attn_prefill":
            width = op.qk_dim + op.v_dim
            length = loop.input_tokens
            flops += op.layers * 2 * length * length * op.heads * width
            rows_moved = length * width * (ACTIVATION_BYTES * op.heads + op.kv_bytes_per_element * op.kv_heads)
            moved += op.layers * (rows_moved + 2 * ACTIVATION_BYTES * length * length * op.heads)
    return flops / moved if moved else 0.0
