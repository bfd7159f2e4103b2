"""The page disaggregation_validation.md: formulas of attention-FFN disaggregation beside published figures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator

from tables import number, table

from pimserve.cluster.validation.disaggregation_case import QUANTITIES
from pimserve.cluster.validation.disaggregation_formula import Formula
from pimserve.cluster.validation.targets import Finding
from pimserve.cluster.validation.validate_disaggregation import validate_disaggregation

_HEAD = """# Attention-FFN disaggregation, the published formulas

Written by `python docs/pages.py`. What is published about attention and experts on different devices, computed by
`pimserve validate disaggregation`: {passed} of {all} figures are within their tolerance. These are formulas of others,
for devices that are given as a few numbers; nothing here is a run of the simulator. Nothing was fitted to a row of this
page but T_c / T_f, as told below. Of the figures, {own} are formulas worked out by hand at inputs chosen here, and
{signs} are signs.

## What it does and does not show

- Step times ([arXiv 2504.02263](https://arxiv.org/abs/2504.02263)) are exact for micro-batches that are alike: the
  closed form equals a schedule event by event for any times, with the paper's condition and without. The T_c / T_f of
  the three gains of a third micro-batch were not published: they are what these gains imply.
- The best ratio ([arXiv 2601.21351](https://arxiv.org/abs/2601.21351)) is the maximum that a search over ratios
  finds. The paper's coefficients for its hardware are not known here, so the rows have inputs of their own.
- Bytes, FLOPs and prices ([arXiv 2507.19427](https://arxiv.org/abs/2507.19427)) follow from the shapes of the models
  and from prices and peaks of its table 4, with an 8-bit KV cache. Most figures are printed with two or three digits:
  where half of the last one is more than 2 %, it is the tolerance. Latent attention is counted as the paper does,
  with the rotary part in both products; the simulator leaves it out of the second (5.6 % less for DeepSeek-V3).
- FastAFD's formula has 1.5 and 2 for its two systems, which both serve half as many requests more in two
  micro-batches. The 36.4 % to 58.6 % of the projections are the shares of its baseline's step.
- Where disaggregation cannot win ([arXiv 2602.09721](https://arxiv.org/abs/2602.09721)): only the sign is computed,
  from the paper's bounds of HFU (hardware FLOPS utilisation) and the 60 % of plain expert parallelism. **Its table of
  bounds by model and GPU is not reproduced**: the bandwidths behind it are not known here, and the one closed form, 2
  B M / FLOPS, does not give the table for any one bandwidth of a GPU.

"""

_FORM = """
## Figures of your own

`pimserve validate disaggregation --cases FILE` takes `{"cases": [...]}` as
`cluster/validation/disaggregation_cases.json` has it: each with an `id`, the `quantity`, its inputs (`case`), what
was `published`, a `tolerance` and its kind (`tolerance_kind`: `rel`, `abs`, or `interval` for `[low, high]`), and, if
you like, the source (`provenance`).

`model` is a name of the catalogue, `step-3`, a name among the file's `models`, or a mapping: `shapes` (a [model
description](scenario.md#model-description)) and, for multi-matrix factorisation attention, `query_rank`.
`accelerator` is `H800`, `H20`, `A800`, `910B`, a name among the file's `accelerators`, or a mapping of
`usd_per_hour`, `bf16_tflop_per_s`, `fp8_tflop_per_s` (if it has any) and `gb_per_s`.

"""


def page() -> str:
    """The whole page."""
    findings = validate_disaggregation()
    head = _HEAD.format(
        passed=sum(finding.passed is True for finding in findings),
        all=len(findings),
        own=sum(finding.note.endswith("chosen here") for finding in findings),
        signs=sum(finding.tolerance_kind == "interval" for finding in findings),
    )
    parts = [head]
    parts.append("## Every figure\n\n")
    columns = ("id", "quantity", "inputs", "published", "ours", "ratio", "tolerance", "", "source")
    parts += [table(columns, list(map(_row, findings))), _FORM]
    parts.append(table(("quantity", "what", "formula", "inputs"), list(_quantities())))
    return "".join(parts)


def _row(finding: Finding) -> tuple[str, ...]:
    assert finding.published is not None
    assert finding.ours is not None
    assert finding.ratio is not None
    inside = finding.tolerance_kind == "interval"
    percent = "inside" if inside else f"{100 * finding.tolerance:g} %"
    return (
        f"`{finding.id}`",
        f"`{finding.quantity}`",
        finding.case,
        number(finding.published) if isinstance(finding.published, tuple) else f"{finding.published:.4g}",
        f"{finding.ours:.4g}",
        "-" if inside else f"{finding.ratio:.4f}",
        f"{finding.tolerance:g}" if finding.tolerance_kind == "abs" else percent,
        "ok" if finding.passed else "MISSED",
        finding.note,
    )


def _quantities() -> Iterator[tuple[str, ...]]:
    for name, form in QUANTITIES.items():
        yield f"`{name}`", _text(form), _text(form.value), ", ".join(_inputs(form))


def _inputs(form: type[Formula]) -> Iterator[str]:
    """Keys, with their defaults."""
    for key, field in form.model_fields.items():
        yield f"`{key}`" if field.is_required() else f"`{key}` ({field.default:g})"


def _text(documented: type[Formula] | Callable[..., float]) -> str:
    """A docstring in one line."""
    text = inspect.getdoc(documented)
    assert text is not None
    return re.sub(r"\s+", " ", text)
