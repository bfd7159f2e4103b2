"""What real GPUs reach, row by row: timed operators, served configurations and published anchors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pimserve.device_models.catalogue import device_names
from pimserve.device_models.gpu import Gpu
from pimserve.device_models.registry import load_device
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TOKENS

Count = Annotated[int, Field(gt=0, le=2**24)]
Tokens = Annotated[int, Field(gt=0, le=MAX_TOKENS)]
Concurrency = Annotated[int, Field(gt=0, le=MAX_REQUESTS // 100)]
MOST_DEVICES = 4096
Devices = Annotated[int, Field(gt=0, le=MOST_DEVICES)]


def _measurable(value: float) -> float:
    if not 1e-9 < value < 1e15:  # generous; beyond it ratios leave the range of floats
        raise ValueError("is no figure that anybody measures")
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_measurable)]


def _mean(value: object) -> object:
    """A latency is a number, or an object with its mean."""
    return value.get("mean") if isinstance(value, dict) else value


class NotCovered(Exception):  # noqa: N818 no error: such rows are listed
    """A well-formed row that this simulator does not predict; says why."""


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)  # more keys than these may be there


class Gemm(_Form):
    """m x k times k x n."""

    m: Count
    n: Count
    k: Count


class DecodeAttention(_Form):
    """One new token of each of `batch` requests that have `context` tokens each."""

    batch: Count
    context: Count
    q_heads: Count
    kv_heads: Annotated[int, Field(ge=0, le=2**24, description="0: as many as q_heads")]
    head_dim: Count
    window_size: Annotated[int, Field(ge=0, le=2**24)] = 0


class PrefillAttention(_Form):
    """`batch` whole prompts of `length` tokens, causal."""

    batch: Count
    length: Count
    q_heads: Count
    kv_heads: Annotated[int, Field(ge=0, le=2**24, description="0: as many as q_heads")]
    head_dim: Count
    window_size: Annotated[int, Field(ge=0, le=2**24)] = 0


class Moe(_Form):
    """Routed experts of one layer: `tokens` tokens choose `topk` of `experts`, each sliced over `tp` GPUs."""

    model: str = ""
    tokens: Count
    hidden: Count
    inter: Count
    topk: Count
    experts: Annotated[int, Field(gt=0, le=65536)]
    tp: Devices = 1
    ep: Devices = 1
    routing: str


class AllReduce(_Form):
    """A sum of `bytes` over `gpus` GPUs of one node."""

    gpus: Devices
    bytes: Annotated[int, Field(gt=0, le=2**40)]


Shape = Gemm | DecodeAttention | PrefillAttention | Moe | AllReduce
SHAPES: Mapping[str, type[Shape]] = {
    "gemm": Gemm,
    "decode_attention": DecodeAttention,
    "prefill_attention": PrefillAttention,
    "moe": Moe,
    "all_reduce": AllReduce,
}


class Row(_Form):
    """What every row has: `where` names it in errors, as file, part and index."""

    where: str = ""

    @property
    def identity(self) -> tuple[object, ...]:
        """What two rows have in common that are of the same measurement, or of the same thing measured twice."""
        return (type(self), *(value for key, value in self if key not in self._unlike))

    _unlike: ClassVar[frozenset[str]] = frozenset({"where"})


class OperatorRow(Row):
    """A timed call of one operator on one GPU (all_reduce: on all of them). Unknown operators keep no shape."""

    gpu: str
    op: str
    shape: Shape | None
    dtype: str
    backend: str
    version: str = ""
    kernel: str = ""
    time_us: Positive
    source: str = ""

    _unlike: ClassVar[frozenset[str]] = frozenset({"where", "time_us", "source"})


class ServedRow(Row):
    """A server in closed loop: mean TTFT and TPOT at `concurrency` requests of `isl` in, `osl` out."""

    gpu: str
    model: str
    backend: str
    version: str = ""
    precision: str = ""
    gpus: Devices
    tp: Devices
    moe_tp: Devices = 1
    moe_ep: Devices = 1
    isl: Tokens
    osl: Annotated[int, Field(gt=1, le=MAX_TOKENS)]
    concurrency: Concurrency
    ttft_ms: Positive
    tpot_ms: Positive
    tokens_per_s_derived: Positive | None = None
    measured: str = Field("", description="date; given by InferenceMAX only")

    # One configuration may be named with different splits (see gpu_served.py): it is the same if all figures are.
    _unlike: ClassVar[frozenset[str]] = frozenset({"where", "gpus", "tp", "moe_tp", "moe_ep", "measured"})

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second: as given, else as TTFT and TPOT make it."""
        return self.tokens_per_s_derived or tokens_per_s(self, self.ttft_ms, self.tpot_ms)


def tokens_per_s(row: ServedRow, ttft_ms: float, tpot_ms: float) -> float:
    """Output tokens per second where each request takes so long, and all are always in flight."""
    return row.concurrency * row.osl / (ttft_ms + tpot_ms * (row.osl - 1)) * 1000


class Anchor(Row):
    """A published throughput in output tokens per second of the whole system."""

    system: str
    model: str
    scenario: str
    precision: str = ""
    software: str = ""
    source: str = ""
    confidence: str
    tokens_per_s: Positive
    samples_per_s: Positive | None = None
    gpus: Devices | None = None
    isl: Tokens | None = None
    osl: Annotated[int, Field(gt=1, le=MAX_TOKENS)] | None = None
    concurrency: Concurrency | None = None
    ttft_ms: Annotated[Positive | None, BeforeValidator(_mean)] = None
    tpot_ms: Annotated[Positive | None, BeforeValidator(_mean)] = None


def catalogue_gpu(text: str) -> str:
    """The GPU of the catalogue that a row names, such as h100 for "H100-SXM-80GB".

    Raises:
        NotCovered: there is none.
    """
    name, known = text.lower().partition("-")[0], catalogue_gpus()
    if name not in known:
        raise NotCovered(f"GPU {text!r} is not in the catalogue (there are {', '.join(known)})")
    return name


@cache
def catalogue_gpus() -> tuple[str, ...]:
    """GPUs of the catalogue."""
    return tuple(name for name in device_names() if type(load_device(name)) is Gpu)
