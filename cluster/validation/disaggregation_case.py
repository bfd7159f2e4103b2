"""Files of published figures of attention-FFN disaggregation, each with the formula that it is held against.

The form is that of targets, `{"cases": [...]}`: `quantity` names a formula, `case` has its inputs. Where an input is a
model or an accelerator, its name does: of the catalogue, of `disaggregation_cases.json`, or of the file's own `models`
and `accelerators`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pimserve.cluster.validation import disaggregation_limits as limits
from pimserve.cluster.validation import disaggregation_pipeline as pipeline
from pimserve.cluster.validation import disaggregation_prices as prices
from pimserve.cluster.validation import disaggregation_ratio as ratio
from pimserve.cluster.validation import disaggregation_speedup as speedup
from pimserve.cluster.validation.disaggregation_formula import Formula, Inputs
from pimserve.cluster.validation.targets import Target, package_file, read_json, read_targets
from pimserve.device_models.catalogue import load_model, model_names
from pimserve.errors import InputError, validation_error

PUBLISHED = "disaggregation_cases.json"

QUANTITIES: Mapping[str, type[Formula]] = {
    "step_time_us": pipeline.StepTime,
    "micro_batch_gain": pipeline.MicroBatchGain,
    "least_micro_batches": pipeline.LeastMicroBatches,
    "transfer_time_us": pipeline.TransferTime,
    "attention_nodes": pipeline.AttentionNodes,
    "best_ratio": ratio.BestRatio,
    "searched_ratio": ratio.SearchedRatio,
    "kv_bytes": prices.KvBytes,
    "attention_flop": prices.AttentionFlop,
    "linear_flop": prices.LinearFlop,
    "ffn_flop": prices.FfnFlop,
    "attention_intensity": prices.AttentionIntensity,
    "usd_per_flop": prices.UsdPerFlop,
    "usd_per_byte": prices.UsdPerByte,
    "attention_usd_per_m_tokens": prices.AttentionPrice,
    "ffn_usd_per_m_tokens": prices.FfnPrice,
    "usd_per_m_tokens": prices.TokenPrice,
    "minimum_sparsity": prices.MinimumSparsity,
    "fastafd_speedup": speedup.FastAfdSpeedup,
    "offload_speedup": speedup.OffloadSpeedup,
    "largest_attention_group": speedup.LargestAttentionGroup,
    "stage_budget_us": limits.StageBudget,
    "stage_margin": limits.StageMargin,
    "ffn_intensity": limits.FfnIntensity,
    "hfu_bound": limits.HfuBound,
    "imbalance_penalty": limits.ImbalancePenalty,
    "shared_imbalance_penalty": limits.SharedImbalancePenalty,
    "gain_over_shared_devices": limits.GainOverSharedDevices,
    "expert_node_hit": limits.ExpertNodeHit,
}
_DEFINED: Mapping[str, type[Inputs]] = {"models": prices.DecodedModel, "accelerators": prices.Accelerator}
_NAMED = {
    "model": "models",
    **dict.fromkeys(("accelerator", "attention_accelerator", "ffn_accelerator"), "accelerators"),
}

_Form = TypeVar("_Form", bound=Inputs)
Definitions = Mapping[str, Mapping[str, Inputs]]


@dataclass(frozen=True, slots=True)
class Case:
    """A published figure with the formula, its inputs in place, that it is held against."""

    target: Target
    formula: Formula

    def describe(self) -> str:
        """The inputs in one line."""
        own = ((key, "its own" if isinstance(value, dict) else value) for key, value in self.target.case.items())
        return ", ".join(f"{key} {value}" for key, value in own)


def read_disaggregation(path: Path) -> list[Case]:
    """Read a file of cases, in its order.

    Raises:
        InputError: the file cannot be read, is not JSON, or a case or definition is malformed; names the place.
    """
    targets = read_targets(path, "case")
    known = _definitions(package_file(PUBLISHED), {})
    if path != package_file(PUBLISHED):
        known = _definitions(path, known)
    return [Case(target, _formula(target, known)) for target in targets]


def _definitions(path: Path, known: Definitions) -> Definitions:
    """Models and accelerators of a file, and those `known` before."""
    document = read_json(path, "cannot read the definitions")
    assert isinstance(document, dict)  # it has a list of cases
    found = {}
    for part, form in _DEFINED.items():
        rows = document.get(part, {})
        if not isinstance(rows, dict):
            raise InputError(f"{path}: {part}", "must be an object of definitions by name")
        here = {name: _validated(form, f"{path}: {part}.{name}", row) for name, row in rows.items()}
        found[part] = {**known.get(part, {}), **here}
    return found


def _formula(target: Target, known: Definitions) -> Formula:
    form = QUANTITIES.get(target.quantity)
    if form is None:
        close = difflib.get_close_matches(target.quantity, QUANTITIES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(target.where, f"unknown quantity {target.quantity!r}{hint} (known: {', '.join(QUANTITIES)})")
    where = f"{target.where}: case"
    inputs = {
        key: _named(f"{where}.{key}", _NAMED[key], value, known) if key in _NAMED and isinstance(value, str) else value
        for key, value in target.case.items()
    }
    return _validated(form, where, inputs)


def _named(where: str, part: str, name: str, known: Definitions) -> Inputs:
    """The model or accelerator of that name."""
    if name in known[part]:
        return known[part][name]
    names = list(known[part])
    if part == "models":
        if name in model_names():
            return prices.DecodedModel(shapes=load_model(name))
        names += model_names()
    raise InputError(where, f"unknown name {name!r} (known: {', '.join(names)})")


def _validated(form: type[_Form], where: str, row: object) -> _Form:
    try:
        return form.model_validate(row)
    except ValidationError as error:
        raise validation_error(where, error, form) from None
