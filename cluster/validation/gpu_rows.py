"""What real GPUs reach, row by row: timed operators, served configurations and published anchors.

Files have the two forms of the reference data. Timed operators are `{"rows": [...]}`; served configurations and
published anchors `{"served": {"rows": [...]}, "anchors": [...]}`, of which one part may be missing. A malformed row is
an error; rows that are only beyond what can be predicted are read like the others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pimserve.cluster.validation.targets import read_json
from pimserve.device_models.catalogue import device_names
from pimserve.device_models.gpu import Gpu
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError, validation_error
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TOKENS

REFERENCE_ENV = "PIMSERVE_REFERENCE"
_DEFAULT_REFERENCE = "../shared/reference"
MEASURED, SERVED = "gpu/measured.json", "gpu/end_to_end.json"

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


_Model = TypeVar("_Model", bound=BaseModel)


def reference_file(name: str) -> Path:
    """A file of the reference data, in the folder $PIMSERVE_REFERENCE or its default place.

    Raises:
        InputError: it is not there; says what to give instead.
    """
    folder = Path(os.environ.get(REFERENCE_ENV) or _DEFAULT_REFERENCE)
    path = folder / name
    if not path.is_file():
        option = "--measured" if name == MEASURED else "--served"
        raise InputError(
            str(path),
            f"no such file; name one with {option} FILE, or the folder of reference data with {REFERENCE_ENV}",
        )
    return path


def read_measured(path: Path) -> list[OperatorRow]:
    """Timed operators of a file, in its order.

    Raises:
        InputError: the file cannot be read, or a row is malformed; names file, row (from 0) and field.
    """
    rows = _list(path, _document(path), "rows")
    if not rows:
        raise InputError(str(path), 'must be an object whose key "rows" holds a list of at least one timed operator')
    return [_operator(f"{path}: rows[{index}]", row) for index, row in enumerate(rows)]


def read_served(path: Path) -> tuple[list[ServedRow], list[Anchor]]:
    """Served configurations and anchors of a file, in its order; one of the two may be empty.

    Raises:
        InputError: the file cannot be read, or a row is malformed; names file, row (from 0) and field.
    """
    document = _document(path)
    part = document.get("served", {})
    if not isinstance(part, dict):
        raise InputError(f"{path}: served", "must be an object with a list `rows`")
    served = _list(path, part, "rows", "served.")
    anchors = _list(path, document, "anchors")
    if not served and not anchors:
        raise InputError(str(path), "must have a list `served.rows` or a list `anchors`, of at least one row")
    return (
        [_parsed(ServedRow, f"{path}: served.rows[{index}]", row) for index, row in enumerate(served)],
        [_parsed(Anchor, f"{path}: anchors[{index}]", row) for index, row in enumerate(anchors)],
    )


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path, "cannot be read")
    if not isinstance(document, dict):
        raise InputError(str(path), "must be a JSON object")
    return document


def _list(path: Path, document: Mapping[str, Any], key: str, above: str = "") -> list[Any]:
    rows = document.get(key, [])
    if not isinstance(rows, list):
        raise InputError(f"{path}: {above}{key}", "must be a list of objects")
    return rows


def _operator(where: str, row: object) -> OperatorRow:
    if isinstance(row, dict):
        op, shape = row.get("op"), row.get("shape")
        row = {**row, "shape": None}
        if not isinstance(shape, dict):
            raise InputError(f"{where}.shape", "must be an object with the operator's sizes")
        if isinstance(op, str) and op in SHAPES:
            row["shape"] = _validated(SHAPES[op], f"{where}.shape", shape)
    return _parsed(OperatorRow, where, row)


def _parsed(form: type[_Model], where: str, row: object) -> _Model:
    if not isinstance(row, dict):
        raise InputError(where, "must be an object")
    return _validated(form, where, {**row, "where": where})


def _validated(form: type[_Model], where: str, row: dict[str, Any]) -> _Model:
    try:
        return form.model_validate(row)
    except ValidationError as error:
        raise validation_error(where, error, form) from None
