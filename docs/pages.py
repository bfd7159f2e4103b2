"""Writes the generated pages of docs/: `python docs/pages.py [--check] [PAGE ...]`.

scenario.md comes from the schemas of the scenario, model and device documents; summary.md from that of summaries;
cli.md from the command line; grpc.md from the .proto files; metrics.md from the metric families; duplex_validation.md
from recomputing the published figures (about 15 s), aimc_validation.md from running the AIMC models side by side
(about a minute), disaggregation_validation.md from computing published formulas, fleet_validation.md from running
measured fleets (about a minute), gpu_validation.md and its pictures from predicting the GPU reference data (about a
minute; skipped where there is none).
With --check nothing is written, and the exit code is 1 if a page would change.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pimserve.cluster.scenario.document import json_schema
from pimserve.cluster.validation.targets import Finding
from pimserve.cluster.validation.validate_duplex import validate_duplex
from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.catalogue import device_names, model_names
from pimserve.device_models.device import DeviceSpec
from pimserve.device_models.duplex import DuplexSpec
from pimserve.device_models.gpu_spec import GpuSpec
from pimserve.device_models.model import ModelSpec

DOCS = Path(__file__).parent
_NAMED = 2  # places of a mapping that its heading names
sys.path.insert(0, str(DOCS))  # for when this is not run as a script

import aimc_page  # noqa: E402
import cli_page  # noqa: E402
import disaggregation_page  # noqa: E402
import fleet_page  # noqa: E402
import gpu_page  # noqa: E402
import grpc_page  # noqa: E402
import metrics_page  # noqa: E402
import summary_page  # noqa: E402
from tables import number, table  # noqa: E402

Schema = Mapping[str, Any]

_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}

_SCENARIO_HEAD = """# Scenario reference

A scenario is one YAML document. Every section may be left out, and an unknown key is an error. `pimserve run FILE --set
path=value` overrides a key, where the path is the section and the key joined by dots (`cluster.replicas=2`). What a run
used, with every default written out, is in the `scenario.yaml` of its results. `pimserve schema` prints the same
reference as JSON Schema, for editors.

The unit of a key is the end of its name: `_s` seconds, `_us` microseconds, `_ns` nanoseconds, `_gb` 10^9 bytes,
`_gb_per_s`, `_tflop_per_s`, `_tokens`, `_nj`, `_pj`, `_pj_per_bit`, `_w` watts, `_mw` milliwatts, `_mm2`. Times, sizes,
bandwidths and peaks also take a text with a unit, such as `"400 GB/s"`, `"80 GiB"`, `"200 ms"`; rates and lengths in
`workload`, and what only `kind: aimc` has, are plain numbers.

A dash as default means: not set. What a [model](#model-description) and a [device](#device-description) may say
stands at the end.
"""

_FIGURES = {
    "4a": "shares of stage time on GPUs",
    "5a": "share of decoding-only stages",
    "5b": "latency of a system of GPUs and Logic-PIM devices",
    "5c": "throughput of that system with duplicated weights",
    "8": "energy x delay x area of the memory-side units",
    "11": "throughput",
    "12": "latency, GLaM",
    "13": "latency over request rate, Mixtral",
    "14": "Bank-PIM; models without experts",
    "15": "energy per token",
    "16": "prefill and decode on separate devices",
    "": "numbers printed in the text",
}

_VALIDATION_HEAD = """# The Duplex paper's figures, recomputed

Every figure that `pimserve validate duplex` holds the simulator to: numbers in the text of arXiv 2409.01141 and
part of the bars of its figures (read from the vector graphics, to about 0.3 % of full scale). {passed} of {all} are
within their tolerance. What is behind "ours", and what was fitted: [duplex.md](duplex.md).

How a figure is computed: *closed form*, the steady state of a closed loop; *engine*, a run of the serving engine;
*capacity*, what fits the memory; *area model*, energy, delay and area of a matrix product.

## Summary

The error of a ratio is relative; that of a share or a count is the difference to the paper's. For an interval, it is
the distance from its nearest end.

"""


def scenario_page() -> str:
    """The reference of all scenario keys."""
    scenario, model, gpu, duplex, aimc = (
        json_schema(),
        *(spec.model_json_schema() for spec in (ModelSpec, GpuSpec, DuplexSpec, AimcSpec)),
    )
    parts = [_SCENARIO_HEAD, *_document("", "Top level", scenario)]
    parts += [
        "## Model description\n",
        "`model` is a name of the catalogue, a YAML file, `{preset: NAME, ...changes}`, or all of the following keys. "
        f"In the catalogue: {_codes(model_names())}. `pimserve models NAME` shows an entry with its sources.\n",
        *_document("model", "", model),
        "## Device description\n",
        "`cluster.device` is a name of the catalogue, a YAML file, `{preset: NAME, ...changes}`, or all keys of a "
        f"kind. In the catalogue: {_codes(device_names())}. `pimserve devices NAME` shows an entry with its sources. "
        "Installed packages may add kinds (entry point `pimserve.devices`). Where a default is *of* a preset, a whole "
        "description that leaves the key open has the preset's figure, and its results say so.\n",
        *_document("cluster.device", "", gpu, "`kind: gpu`", defaults=_of_preset(GpuSpec)),
        *_document(
            "cluster.device",
            "",
            duplex,
            "`kind: duplex`, in addition to the keys of `gpu`",
            known=gpu,
            defaults=_of_preset(DuplexSpec),
        ),
        *_document("cluster.device", "", aimc, "`kind: aimc`", defaults=_of_preset(AimcSpec)),
    ]
    return "\n".join(parts)


def _of_preset(kind: type[DeviceSpec]) -> Mapping[str, str]:
    """By the path of a key that a whole description may leave open, what it then has."""
    return {f"cluster.device.{key}": f"of `{kind.default_preset}`" for key in kind.taken_over}


def _document(
    path: str,
    title: str,
    schema: Schema,
    note: str = "",
    known: Schema | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Sections of one document: its own keys, then those of every mapping below it.

    Args:
        path: of the document in the scenario; "" for the scenario itself.
        title: heading, where there is no path.
        schema: JSON Schema with its $defs.
        note: what the heading says after the path.
        known: a document described before: keys that are the same there are left out.
        defaults: by the path of a key, or of a mapping of keys, what stands there in place of the schema's default.
    """
    told = defaults or {}
    definitions: Schema = schema.get("$defs", {})
    paths: dict[str, list[str]] = {}
    _places(path, schema, definitions, paths)
    heads = {
        name: _heading(places, _kind(definitions[name]))
        for name, places in paths.items()
        if not known or definitions[name] != known.get("$defs", {}).get(name)
    }
    same: Schema = known["properties"] if known else {}
    yield from _section(title or _heading([path], note), schema, heads, same, [path], told)
    for name, head in heads.items():
        yield from _section(head, definitions[name], heads, {}, paths[name], told)


def _places(path: str, schema: Schema, definitions: Schema, paths: dict[str, list[str]]) -> None:
    """Collect at which paths each definition is used, in order of appearance."""
    for key, value in schema["properties"].items():
        here = f"{path}.{key}" if path else key
        for name in _references(value):
            if here not in paths.setdefault(name, []):
                paths[name].append(here)
            _places(here, definitions[name], definitions, paths)


def _references(value: Schema) -> list[str]:
    """Names of the definitions that a value may be."""
    if options := value.get("anyOf") or value.get("oneOf"):
        return [name for option in options for name in _references(option)]
    item = value.get("items", value)
    return [item["$ref"].rpartition("/")[2]] if "$ref" in item else []


def _kind(schema: Schema) -> str:
    """The key that tells this mapping from others in its place."""
    for key in ("kind", "model", "name"):
        if "const" in schema["properties"].get(key, {}):
            return f"`{key}: {schema['properties'][key]['const']}`"
    return ""


def _heading(paths: Sequence[str], note: str) -> str:
    named = " and ".join(f"`{path}`" for path in paths[:_NAMED])
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return named + more + (f", {note}" if note else "")


def _section(
    heading: str, schema: Schema, heads: Mapping[str, str], same: Schema, places: Sequence[str], told: Mapping[str, str]
) -> Iterator[str]:
    yield f"### {heading}\n"
    if len(places) > _NAMED:
        yield f"Of {_codes(places)}.\n"
    text = schema.get("description", "")
    if text:
        yield re.sub(r'"(\w+)"', r"`\1`", text.replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")) + "\n"
    rows = []
    for key, value in schema["properties"].items():
        if same.get(key) == value:
            continue
        required = key in schema.get("required", ())
        default = "required" if required else _default(value)
        default = next(
            (told[key_path] for place in places for key_path in (place, f"{place}.{key}") if key_path in told), default
        )
        rows.append((f"`{key}`", _type(value, heads), default, value.get("description", "")))
    yield table(("key", "value", "default", "meaning"), rows)


def _default(value: Schema) -> str:
    default = value.get("default")
    if default is None or default in ("", []) or (_references(value) and not isinstance(default, str)):
        return "-"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _type(value: Schema, heads: Mapping[str, str]) -> str:
    """What a key may hold, in words."""
    options = value.get("anyOf") or value.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(_type(option, heads) for option in options if option.get("type") != "null"))
    if "$ref" in value:
        head = heads[value["$ref"].rpartition("/")[2]]
        return f"[{_label(head)}](#{slug(head)})"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return _codes(value["enum"])
    if value["type"] == "array":
        if "prefixItems" in value:
            return "[" + "; ".join(_type(item, heads) for item in value["prefixItems"]) + "]"
        return f"list, each: {_type(value['items'], heads)}"
    if value["type"] == "object":
        of = value.get("additionalProperties")
        if not isinstance(of, Mapping):
            return "mapping"
        return f"mapping of {_codes(value['propertyNames']['enum'])} to {_type(of, heads)}"
    limits = [words.format(_plain(value[limit])) for limit, words in _LIMITS.items() if limit in value]
    if "x-units" in value:
        limits.append(f"with one of the units {value['x-units']}")
    elif "pattern" in value:
        limits.append(f"like `{value['pattern']}`")
    return ", ".join([_TYPES[value["type"]], *limits])


def _plain(number: float) -> str:
    """With thousands separated, and without an exponent."""
    return f"{number:,}" if isinstance(number, int) else f"{number:,.15g}"


def _label(heading: str) -> str:
    kind = re.search(r"`(?:kind|model|name): (\w+)`", heading)
    return kind[1] if kind else "mapping"


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def validation_page() -> str:
    """The published figures beside ours."""
    findings = validate_duplex()
    groups = {name: [finding for finding in findings if _figure(finding) == name] for name in _FIGURES}
    summary = [
        (f"[{f'Fig. {name}' if name else 'Text'}](#{slug(_figure_heading(name))})", *cells)
        for name, group in groups.items()
        for cells in _errors(_FIGURES[name], group)
    ]
    head = _VALIDATION_HEAD.format(passed=sum(bool(finding.passed) for finding in findings), all=len(findings))
    columns = ("", "what", "figures", "mean error", "worst error", "worst figure")
    parts = [head + table(columns, summary)]
    for name, group in groups.items():
        notes = list(dict.fromkeys(finding.note for finding in group if finding.note))
        parts.append(f"## {_figure_heading(name)}\n")
        rows = [
            (
                f"`{finding.id}`",
                finding.case,
                finding.quantity,
                number(finding.published),
                number(finding.ours),
                number(finding.ratio),
                _tolerance(finding),
                finding.method + (f" ({notes.index(finding.note) + 1})" if finding.note else ""),
                "ok" if finding.passed else "MISSED",
            )
            for finding in group
        ]
        parts.append(table(("id", "setting", "quantity", "paper", "ours", "ratio", "tolerance", "computed", ""), rows))
        parts += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
        if notes:
            parts.append("")
    return "\n".join(parts)


def _figure(finding: Finding) -> str:
    figure = re.match(r"F(\d+[a-z]?)-", finding.id)
    return figure[1] if figure else ""


def _figure_heading(name: str) -> str:
    return f"Fig. {name}: {_FIGURES[name]}" if name else "Numbers printed in the text"


def _errors(what: str, group: list[Finding]) -> Iterator[tuple[str, ...]]:
    """(what, count, mean error, worst error, worst id): of the ratios, and of the shares and counts."""
    for absolute in (False, True):
        errors = {
            finding.id: abs(finding.ours - finding.published) if absolute else abs(finding.ratio - 1)  # type: ignore[operator]
            for finding in group
            if (finding.tolerance_kind == "abs") is absolute
        }
        if errors:
            worst = max(errors, key=lambda name: errors[name])
            mean, most = (
                f"{error:.3f}" if absolute else f"{100 * error:.1f} %"
                for error in (fmean(errors.values()), errors[worst])
            )
            part = "" if len(errors) == len(group) else ", shares or counts" if absolute else ", ratios"
            yield what + part, str(len(errors)), mean, most, f"`{worst}`"


def _tolerance(finding: Finding) -> str:
    if finding.tolerance_kind == "abs":
        return f"{finding.tolerance:g}"
    return f"{100 * finding.tolerance:g} %"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# What makes each page: its text, or all files that belong to it.
PAGES: dict[str, Callable[[], str | Mapping[str, str]]] = {
    "scenario.md": scenario_page,
    "summary.md": summary_page.page,
    "cli.md": cli_page.page,
    "grpc.md": grpc_page.page,
    "metrics.md": metrics_page.page,
    "duplex_validation.md": validation_page,
    "aimc_validation.md": aimc_page.page,
    "disaggregation_validation.md": disaggregation_page.page,
    "fleet_validation.md": fleet_page.page,
    gpu_page.PAGE: gpu_page.page,
}


def main() -> int:
    """Write or check pages; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated pages of docs/.")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"which of {', '.join(PAGES)}; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page would change")
    options = parser.parse_args()
    if unknown := set(options.pages) - set(PAGES):
        parser.error(f"no such page: {', '.join(sorted(unknown))}")
    stale = []
    for name in options.pages or PAGES:
        made = PAGES[name]()
        for file, text in ({name: made} if isinstance(made, str) else made).items():
            path = DOCS / file
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            stale.append(file)
            if not options.check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"docs/{name} is out of date: run python docs/pages.py" if options.check else f"wrote docs/{name}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
