"""What summary.json says that working out a run's history hangs on, checked: others may have edited it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, create_model

from pimserve.errors import validation_error
from pimserve.loadgen.spec import PS_PER_S

_COUNT = Annotated[int, Field(ge=0, le=2**63)]
_SECONDS = Annotated[float, Field(ge=0, le=2**63 / PS_PER_S, allow_inf_nan=False)]
_POSITIVE = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _part(**types: Any) -> Any:  # noqa: ANN401 types, or pairs of a type and what stands for it where it is missing
    """The type of a mapping with these keys, of which the others do not matter."""
    fields: dict[str, Any] = {key: kind if isinstance(kind, tuple) else (kind, ...) for key, kind in types.items()}
    model: Any = create_model("Part", __config__=ConfigDict(strict=True), **fields)
    return model


def _list_of(**types: Any) -> Any:  # noqa: ANN401 as `_part`
    return (GenericAlias(list, _part(**types)), ())


_POOL = _part(plan_digest=str)
_WINDOW = _part(start_s=_SECONDS, end_s=_SECONDS, whole_run=bool)
_SPREAD = _part(recoveries=(_COUNT, 0), audited_spans=(_COUNT, 0))
_FAULTS = _part(
    events=_list_of(at_s=_SECONDS, replica=_COUNT, kind=str, for_s=_SECONDS | None, took_effect_s=_SECONDS | None),
    slowdowns=_list_of(replica=_COUNT, first_step=_COUNT, factor=Annotated[float, Field(ge=0.001, le=1000)]),
)
_ACCOUNT = _part(
    end_s=_SECONDS,
    digest=str,
    plan_digest=(str | None, None),
    pools=(_part(prefill=_POOL, decode=_POOL) | None, None),
    requests=_part(total=_COUNT),
    batch=_part(steps=_COUNT),
    kv=_part(capacity_tokens=_COUNT),
    window=_WINDOW,
    faults=(_FAULTS, None),
    simulator=_part(loop_s=_POSITIVE, peak_memory_mb=_POSITIVE, spread=(_SPREAD, None)),
)


def check_account(summary: Mapping[str, Any], file: Path) -> None:
    """Check a summary as far as histories need it.

    Args:
        summary: as read.
        file: where it was.

    Raises:
        InputError: something is missing, or of another kind than a run writes.
    """
    try:
        _ACCOUNT.model_validate(summary)
    except ValidationError as error:
        raise validation_error(str(file), error, _ACCOUNT) from None
