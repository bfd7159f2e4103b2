"""What real GPUs reach on the operators of a language model: efficiencies and fixed costs per kernel.

A set of kernels belongs to one GPU, one serving backend, one version of it, and within that to data types; all that is
in the catalogue was fitted to measured calls, as each file's sources say. A device without one is ideal: it runs at
the shares of peak and bandwidth of its own description, and starting a kernel costs nothing. Both go through the same
formulas (`gpu.py`). Shares are of the dense peak, and of the nominal memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pimserve.device_models.catalogue import kernel_names, load_kernel_document, merged
from pimserve.device_models.model import Dtype
from pimserve.device_models.plan import HOST, RowTerm
from pimserve.device_models.reserve import Reserve
from pimserve.errors import InputError, validation_error
from pimserve.quantity import GigabytesPerSecond, Microseconds


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 pydantic wants ValueError
    return value


def _line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be a line of text")
    return text


# Bounds are generous; beyond them times leave the clock's range.
Share = Annotated[float, Field(ge=1e-6, le=1), BeforeValidator(_no_truth)]
NonNegative = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False), BeforeValidator(_no_truth)]
Backend = Literal["vllm", "trtllm"]

FS_PER_US = 10**9
SPLIT_K = 8192  # longest k of the measured calls
_SIXTEEN_BIT: tuple[Dtype, ...] = ("bf16", "fp16")
# Whose kernel stands in for a data type that was not measured: the nearest in width, and at last 16 bit.
_STAND_INS: Mapping[str, tuple[Dtype, ...]] = {
    "bf16": _SIXTEEN_BIT,
    "fp16": ("fp16", "bf16"),
    "fp8": ("fp8", "fp8_block", *_SIXTEEN_BIT),
    "fp8_block": ("fp8_block", "fp8", *_SIXTEEN_BIT),
    "nvfp4": ("nvfp4", "mxfp4", "fp8", "fp8_block", *_SIXTEEN_BIT),
    "mxfp4": ("mxfp4", "nvfp4", "fp8_block", "fp8", *_SIXTEEN_BIT),
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GemmKernel(_Section):
    """max(FLOPs / (compute x peak), bytes / (memory x bandwidth), depth x k / 1,024) + launch + activation passes.

    A thread block walks along k, and no matrix is so small that it need not; beyond `SPLIT_K`, several share the walk.
    """

    compute: Share = Field(description="share of the peak")
    memory: Share = Field(description="share of the bandwidth")
    launch_us: Microseconds = 0.0
    captured_us: Microseconds | None = Field(
        None, description="launch inside a captured layer whose kernels before it quantise its input; default: as alone"
    )
    depth_us: Microseconds = Field(0.0, description="per 1,024 elements of k")
    reread: NonNegative = Field(
        0.0, description="share of the weights' time that each 128 rows add: every tile of columns reads them again"
    )
    activation_passes: NonNegative = Field(
        0.0, description="times that the 16-bit input is moved to quantise it, at nominal bandwidth"
    )


class DecodeAttentionKernel(_Section):
    """launch + KV bytes of (context + sequence_tokens) per sequence / (memory x bandwidth)."""

    memory: Share = Field(description="share of the bandwidth")
    launch_us: Microseconds = 0.0
    sequence_tokens: NonNegative = Field(0.0, description="fixed cost of a sequence, in tokens of its cache")


class PrefillAttentionKernel(_Section):
    """launch + FLOPs of (pairs + ramp_tokens x queries) / (compute x peak)."""

    compute: Share = Field(description="share of the 16-bit peak for long prompts")
    memory: Share = Field(description="share of the bandwidth")
    launch_us: Microseconds = 0.0
    ramp_tokens: NonNegative = Field(0.0, description="keys that a query costs beside those that it sees")


class MoeKernel(_Section):
    """launches + row passes + per expert max(its weights, its tokens and padding): grouped GEMMs with their routing."""

    compute: Share = Field(description="share of the peak")
    memory: Share = Field(description="share of the bandwidth")
    launch_us: Microseconds = 0.0
    expert_us: Microseconds = Field(
        0.0, description="launch of each expert that a device holds, with tokens or without"
    )
    captured_us: Microseconds | None = Field(
        None, description="all launches inside a captured layer; default: launch_us, and expert_us of each"
    )
    padding_tokens: NonNegative = Field(0.0, description="rows of a tile that an expert leaves empty, mean")
    row_passes: NonNegative = Field(
        0.0, description="times that a routed token's 16-bit vector of the hidden width is moved to sort and sum them"
    )


class CollectiveKernel(_Section):
    """latency + bytes x steps / bus bandwidth; steps are 2 (n - 1) / n for an all-reduce, (n - 1) / n for others."""

    name: str
    latency_us: Microseconds
    bus_gb_per_s: GigabytesPerSecond


_Algorithms = dict[Annotated[int, Field(ge=2)], Annotated[tuple[CollectiveKernel, ...], Field(min_length=1)]]


class Collectives(_Section):
    """Algorithms of each collective by number of GPUs in it; a library takes the fastest for a size."""

    all_reduce: _Algorithms
    all_gather: _Algorithms = Field(default_factory=dict)
    reduce_scatter: _Algorithms = Field(default_factory=dict)
    all_to_all: _Algorithms = Field(default_factory=dict)


class StepKernel(_Section):
    """What a step costs beside its operators."""

    layer_us: Microseconds = Field(
        0.0, description="launches of a layer's norms, rotary embedding, activation, cache write"
    )
    memory: Share = Field(1.0, description="share of the bandwidth at which these move their elements")
    host_us: Microseconds = Field(0.0, description="scheduler, sampling and host of a step")
    host_request_us: Microseconds = Field(0.0, description="and of each running request")
    host_prompt_us: Microseconds = Field(0.0, description="more in a step with prompts, which no captured graph fits")

    frontend_us: Microseconds = Field(
        0.0, description="from the client's request to the scheduler's: part of TTFT and E2E, and of no step"
    )

    @property
    def frontend_ps(self) -> int:
        """Time of a request in front of the scheduler, as a plan has it."""
        return round(self.frontend_us * 1e6)

    def host_terms(self) -> tuple[RowTerm, ...]:
        """Cost terms of the host."""
        requests = ((round(self.host_us * FS_PER_US), round(self.host_request_us * FS_PER_US)),)
        prompts = ((round(self.host_prompt_us * FS_PER_US), 0),)
        return (
            RowTerm("host, step", "step", HOST, "requests", requests, runs="first"),
            RowTerm("host, prompts", "step", HOST, "prompts", prompts, runs="first"),
        )


class Kernels(_Section):
    """Kernels of one GPU with one backend."""

    gpu: str
    backend: Backend
    version: Annotated[str, Field(max_length=100), AfterValidator(_line)]
    gemm: dict[Dtype, GemmKernel] = Field(description="by the data type of the weights")
    decode_attention: dict[Dtype, DecodeAttentionKernel] = Field(description="by the data type of the KV cache")
    prefill_attention: dict[Dtype, PrefillAttentionKernel] = Field(description="by the data type of the queries")
    moe: dict[Dtype, MoeKernel] = Field(description="by the data type of the experts' weights")
    collectives: Collectives
    step: StepKernel
    memory: Reserve
    sources: tuple[str, ...]

    @property
    def label(self) -> dict[str, Any]:
        """What a result says of them."""
        return {
            "setting": "measured",
            "gpu": self.gpu,
            "backend": self.backend,
            "version": self.version,
            "frontend_s": self.step.frontend_us / 1e6,
        }

    def captured(self) -> Kernels:
        """The same inside layers that run as one captured graph, where calls can cost less than they do alone."""
        gemm = {
            dtype: kernel
            if kernel.captured_us is None
            else kernel.model_copy(update={"launch_us": kernel.captured_us, "activation_passes": 0.0})
            for dtype, kernel in self.gemm.items()
        }
        moe = {
            dtype: kernel
            if kernel.captured_us is None
            else kernel.model_copy(update={"launch_us": kernel.captured_us, "expert_us": 0.0})
            for dtype, kernel in self.moe.items()
        }
        return self.model_copy(update={"gemm": gemm, "moe": moe})

    def stand_ins(self, dense: Iterable[str], routed: Iterable[str], cache: str) -> list[str]:
        """Which data types run on another's kernel: of dense and routed weights, and of the KV cache; sentences."""
        measured: list[tuple[str, Iterable[Dtype], str]] = [
            *(("matrix products", self.gemm, dtype) for dtype in dense),
            *(("experts", self.moe, dtype) for dtype in routed),
            ("decode attention", self.decode_attention, cache),
        ]
        return [
            f"{what} in {dtype} take the efficiencies measured in {used}"
            for what, known, dtype in measured
            if (used := stand_in(known, dtype)) != dtype and {used, dtype} != set(_SIXTEEN_BIT)
        ]


def load_kernels(gpu: str, backend: str, changes: Mapping[str, Any] | None = None) -> Kernels:
    """Kernels of a GPU with a backend, as the catalogue has them, or with changes to them.

    Raises:
        InputError: none were measured for these, or a change is not acceptable.
    """
    name = f"{gpu}-{backend}"
    if name not in kernel_names():
        raise InputError(
            "costs.backend", f"no measured kernels for {gpu} with {backend} (there are {', '.join(kernel_names())})"
        )
    if not changes:
        return _of_catalogue(name)
    document = merged(load_kernel_document(name), changes)
    if changed := [key for key in ("gpu", "backend", "sources") if key in changes]:
        raise InputError(f"costs.kernels.{changed[0]}", "says where the catalogue's kernels are from, and stays")
    try:
        kernels = Kernels.model_validate(document)
    except ValidationError as error:
        raise validation_error("costs.kernels", error, Kernels) from None
    if kernels == _of_catalogue(name):
        return kernels
    return kernels.model_copy(update={"version": f"{kernels.version} (changed)"})


@cache
def _of_catalogue(name: str) -> Kernels:
    return Kernels.model_validate(load_kernel_document(name))


def stand_in(measured: Iterable[Dtype], dtype: str) -> Dtype:
    """The data type whose kernel runs `dtype`: its own, or the nearest of those `measured`.

    Raises:
        InputError: none comes near.
    """
    known = tuple(measured)
    for candidate in _STAND_INS[dtype]:
        if candidate in known:
            return candidate
    raise InputError("costs.backend", f"has no measured kernel for {dtype} (there are {', '.join(known)})")
