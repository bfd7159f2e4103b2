"""The page of the study of mixed replicas, written from its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mixed_findings import findings, losses, undemonstrated, under_traces
from mixed_pictures import pictures
from mixed_results import (
    DEVICES,
    EQUALS,
    FLEET,
    POWER,
    SILICON,
    Cell,
    Study,
    bottleneck,
    goodput_of,
    limit,
    replica_label,
)
from mixed_systems import ATTAINMENT, CODE, CONVERSATION, LENGTHS, MODELS, RELAXED, SLOS, STRICT, SYSTEMS
from tables import table

PAGE = "studies/mixed.md"
_NONE = "-"

_HEAD = """# Attention on one kind of device, experts on another: a study

Four models on GPUs, on Duplex, on 3D AIMC chips, and on mixtures in which attention with its KV cache is on one kind
of device and the routed experts are on another (`cluster.placement`). Every figure is of a run of the program. It is
written by

```
python docs/studies/mixed.py            # all runs, under half an hour on two quiet cores; no trace is needed
python docs/studies/mixed.py --page     # this page again, from docs/studies/mixed.json
```

and the sentences below that compare figures are checked against them when the page is written.

**No AIMC chip and no Duplex device exists.** Their figures are projections, from sources that [aimc.md](../aimc.md)
and [duplex.md](../duplex.md) give one by one. **Precision is not alike**: AIMC chips hold weights in about {bits}
bits and, alone, the KV cache in 8, where the others compute in the model's own (16 bits; DeepSeek-V3: 8-bit weights).
Accuracy is not modelled. So no ratio with AIMC in it is like for like.

"""

_SETTING = """## Setting

- **Devices**: `h100` for GPUs, `duplex` (whose processor is an H100), `aimc-realistic`. All are *ideal*
  ([gpu.md](../gpu.md)), which flatters GPUs and Duplex: a row of GPUs with kernels as timed with vLLM stands beside.
  B200 is left out, since its silicon is not published.
- **Replicas** ("shapes") are listed [at the end](#all-replicas): the fewest devices that hold a model, and a few
  larger and otherwise split ones. A system is shown with the best of its shapes, chosen anew in each comparison,
  mixed or not. `4 + 8` is 4 devices with attention and 8 with experts. AIMC chips that hold experts alone have
  `spread: experts`, so that all work on a layer at once; an expert of Grok-1 is larger than a chip, and cut over five
  ([aimc.md](../aimc.md#mapping)). TP: devices that split attention; m: micro-batches at most, of which
  `auto` decides by the tokens of a step. A step has at most 2,048 tokens, or as many as are named: replicas with many
  devices want more, AIMC alone less.
- **Link** between the groups: 50 GB/s a device and way, 5 us (a 400 Gb/s NIC; latency assumed).
- **Traffic**: Poisson arrivals with the published length statistics of the Azure traces of 2023: conversation (1,155
  tokens in and 211 out in the mean) and code (2,048 and 28). Code arrives in bursts in that trace, which is left out.
- **Goodput**: the highest rate at which {attainment} of the requests meet both limits of the SLO and the run is not
  saturated, found by bisection within {close}. *Relaxed*: TTFT {relaxed}. *Strict*: {strict}. A run has arrivals for
  a minute, or as long as {enough} requests take, but at least for {least:g} s and of {fewest} requests; the first
  quarter is not measured. Of the {runs} runs at a relaxed goodput {short} are too short to tell whether they would stay
  so: these count, though in longer runs some might turn out to be saturated.
- **Energy** is what devices draw: hosts, cooling, and the links between devices are left out, those between groups
  too. Silicon is what computes: memory dies are left out, on AIMC chips too.
- **Not covered**: prompts on a pool of their own ([pools.md](../pools.md)), where decoding alone would be what is
  mixed; replicas with more than 32 devices of attention on one set of chips; skewed experts; prefix caching; bursts.
  Grok-1 takes 8,192 tokens: longer requests are rejected, and count as missed.

"""

_FLEETS = """## Fleets of equal size

Whole replicas within a budget: {fleet} times the largest replica of the comparison, so that what is left over is
small. A fleet's goodput counts as that of its replicas together. Behind a router these do nearly what they do alone: at
the worst {lowest} of the requests keep the SLO in place of {alone} ([checks](#checks)).

- *Equal devices*: an H100, a Duplex and an AIMC chip count as one each.
- *Equal silicon*: mm2 as above.
- *Equal power*: the mean power of the replica at its own goodput, passive power included. No TDP is known of AIMC
  chips.

![goodput of fleets over that of GPUs](../images/mixed_fleets.svg)

The tables have requests/s, and in brackets the share of the budget that is used.

"""


_REPLICAS = """## One replica at its goodput

The shape with the highest goodput for its silicon, at the relaxed SLO. Busy shares are of the busiest device, and
"waits" what attention's devices wait for, of all busy time. *Limit*: what the next higher rate misses.

"""

_ENERGY = """## Energy per token

Of the same replicas, conversation: at the goodput, and at a tenth of it. Passive energy is what devices draw whether
they work or not; in the picture it is the pale part, and the right bar is the tenth.

![energy per token](../images/mixed_energy.svg)

"""

_TRACES = """
## Under the traces themselves

The best replicas at their goodput, with arrivals and lengths of the first half hour of the Azure traces brought to that
rate: how many requests keep the relaxed SLO. {finding}

"""

_SENSITIVITY = """## Sensitivities

Duplex + AIMC under conversation, the shape with the highest goodput for its silicon, one assumption at a time at a low
and a high value. Goodput is searched anew; energy is at half of the base's goodput. Where tiers or their size change,
chips are as few as hold the experts. Where goodput falls below that half, the energy is of an overloaded system.

"""


def files(results: Mapping[str, Any]) -> dict[str, str]:
    """The page and its pictures, by their paths in docs/."""
    study = Study(results)
    return {PAGE: page(study), **pictures(study)}


def page(study: Study) -> str:
    """The text."""
    return "".join(
        (
            _HEAD.format(bits=5),
            "## Findings\n\n",
            *_bullets(findings(study)),
            "\n### Where mixing loses\n\n",
            *_bullets(losses(study)),
            "\n### What was never demonstrated, and decides\n\n",
            *_bullets(undemonstrated(study)),
            "\n",
            _setting(study),
            _fleets_head(study),
            *_fleets(study),
            *_replicas(study),
            *_energy(study),
            *_sensitivity(study),
            *_checks(study),
            *_traces(study),
            *_all_shapes(study),
        )
    )


def _bullets(sentences: Iterator[str]) -> Iterator[str]:
    return (f"- {sentence}\n" for sentence in sentences)


def _fleets_head(study: Study) -> str:
    edge = min(study.copies, key=lambda entry: entry["several"]["attainment"])
    lowest, alone = (f"{100 * edge[run]['attainment']:.0f} %" for run in ("several", "one"))
    return _FLEETS.format(fleet=FLEET, lowest=lowest, alone=alone)


def _setting(study: Study) -> str:
    from mixed_runs import CLOSE, ENOUGH, FEWEST, LEAST_S  # noqa: PLC0415 of the runs

    def limits(name: str) -> str:
        slo = SLOS[name]
        return f"{slo.ttft_s:g} s, TPOT {1000 * slo.tpot_s:g} ms"

    return _SETTING.format(
        attainment=f"{100 * ATTAINMENT:.0f} %",
        close=f"{100 * (CLOSE - 1):.0f} %",
        relaxed=limits(RELAXED),
        strict=limits(STRICT),
        fewest=FEWEST,
        enough=f"{ENOUGH:,}",
        least=LEAST_S,
        runs=len(study.stabilities),
        short=study.stabilities.count("too short to tell"),
    )


def _fleets(study: Study) -> Iterator[str]:
    for traffic, slo in ((CONVERSATION, RELAXED), (CODE, RELAXED), (CONVERSATION, STRICT)):
        yield f"### {traffic[0].upper()}{traffic[1:]}, {slo} SLO\n\n"
        rows = []
        for model in study.models:
            for system, name in SYSTEMS.items():
                cells = [_fleet(study, model, system, traffic, slo, equal) for equal in EQUALS]
                rows.append((MODELS[model] if system == "gpu" else "", name, *cells))
        budgets = "; ".join(
            f"{MODELS[model]} {study.budget(model, traffic, slo, DEVICES):.0f} devices, "
            f"{study.budget(model, traffic, slo, SILICON):,.0f} mm2, "
            f"{study.budget(model, traffic, slo, POWER) / 1000:.1f} kW"
            for model in study.models
        )
        yield table(("", "", "equal devices", "equal silicon", "equal power"), rows) + f"\nBudgets: {budgets}.\n\n"


def _fleet(study: Study, model: str, system: str, traffic: str, slo: str, equal: str) -> str:
    fleet = study.fleet(model, system, traffic, slo, equal)
    if fleet is None:
        return _NONE
    ratio = study.ratio(model, system, traffic, slo, equal)
    beside = f", {ratio:.2f} x GPU" if ratio is not None and system != "gpu" else ""
    return (
        f"{digits(fleet.goodput)}{beside} ({fleet.replicas} of {replica_label(fleet.cell)}; {100 * fleet.share:.0f} %)"
    )


def _replicas(study: Study) -> Iterator[str]:
    yield _REPLICAS
    columns = (
        "",
        "",
        "replica",
        "mm2",
        "requests/s",
        "tokens/s",
        "batch",
        "TTFT p50, p99",
        "TPOT p50, p99",
        "J/token",
        "W",
        "busiest",
        "limit",
    )
    for traffic in LENGTHS:
        rows = []
        for model in study.models:
            for system, name in SYSTEMS.items():
                cell = study.best(model, system, traffic)
                head = (MODELS[model] if system == "gpu" else "", name)
                rows.append(
                    (*head, *(_at_goodput(cell) if cell else ("keeps the SLO at no rate", *[""] * (len(columns) - 3))))
                )
        yield f"### {traffic[0].upper()}{traffic[1:]}\n\n{table(columns, rows)}\n"


def _at_goodput(cell: Cell) -> tuple[str, ...]:
    run = cell[RELAXED]["goodput"]
    return (
        replica_label(cell),
        f"{cell['mm2']:,.0f}",
        digits(run["rate_per_s"]),
        digits(run["tokens_per_s"]),
        digits(run["batch"]),
        f"{seconds(run['ttft_p50_s'])}, {seconds(run['ttft_p99_s'])}",
        f"{seconds(run['tpot_p50_s'])}, {seconds(run['tpot_p99_s'])}",
        joules(run["joules_per_token"]),
        digits(run["watts"]),
        bottleneck(run),
        limit(cell, RELAXED),
    )


def _energy(study: Study) -> Iterator[str]:
    yield _ENERGY
    rows = []
    for model in study.models:
        for system, name in SYSTEMS.items():
            cell = study.best(model, system)
            if cell is None:
                continue
            full, low = cell[RELAXED]["goodput"], cell["loads"]["0.1"]
            parts = [_split_energy(run) for run in (full, low)]
            rows.append((MODELS[model] if system == "gpu" else "", name, *parts, seconds(low["tpot_p50_s"])))
    columns = ("", "", "at the goodput = active + passive", "at a tenth = active + passive", "TPOT p50 at a tenth")
    yield table(columns, rows) + "\n"


def _split_energy(run: Mapping[str, Any]) -> str:
    whole, active, passive = (joules(run[f"{part}joules_per_token"]) for part in ("", "active_", "passive_"))
    return f"{whole} = {active} + {passive}"


def _sensitivity(study: Study) -> Iterator[str]:
    yield _SENSITIVITY
    for model in dict.fromkeys(entry["model"] for entry in study.sensitivity):
        base = study.base(model)
        yield f"### {MODELS[model]}\n\n![sensitivities](../images/mixed_tornado_{model}.svg)\n\n"
        yield (
            f"Base: {replica_label(base)}, {base['mm2']:,.0f} mm2, goodput {_rate_of(base)} requests/s, "
            f"{joules(base['half_load']['joules_per_token'])}/token at half of it.\n\n"
        )
        rows = []
        for name in study.by_weight(model):
            knob = study.knobs[model][name]
            ends = [study.end(model, name, end) for end in ("low", "high")]
            rows.append(
                (
                    name,
                    f"{knob.low_label} to {knob.high_label}",
                    _to(ends, _rate_of),
                    _to(ends, lambda entry: joules(entry["half_load"]["joules_per_token"])),
                    _to(ends, lambda entry: f"{entry['mm2']:,.0f}"),
                    ("" if knob.demonstrated else "not demonstrated: ") + knob.source,
                )
            )
        yield table(("assumption", "from, to", "requests/s", "per token", "mm2", "source"), rows) + "\n"
        yield _other_micro_batches(study, model)


def _other_micro_batches(study: Study, model: str) -> str:
    """Where `auto` cuts batches otherwise than in the base, which moves the goodput too."""
    base = study.base(model)["micro_batches"]
    others = [
        f"{name} {label} ({entry['micro_batches']})"
        for name, knob in study.knobs[model].items()
        for end, label in (("low", knob.low_label), ("high", knob.high_label))
        if name != "micro-batches"
        and (entry := study.end(model, name, end)) is not None
        and entry["micro_batches"] != base
    ]
    if not others:
        return ""
    return (
        f"The base has {base} micro-batches at most. `auto`, which looks at steps of decoding, takes another number "
        f"with {', '.join(others)}; a part of their difference is due to that.\n\n"
    )


def _to(ends: Sequence[Cell | None], write: Callable[[Cell], str]) -> str:
    return " to ".join("base" if entry is None else write(entry) for entry in ends)


def _rate_of(entry: Cell) -> str:
    return digits(entry["goodput"]["rate_per_s"]) if entry["goodput"] else "none"


def _checks(study: Study) -> Iterator[str]:
    yield "## Checks\n\n"
    for entry in study.copies:
        one, several = entry["one"], entry["several"]
        yield (
            f"- {MODELS[entry['model']]} on {SYSTEMS[entry['system']]}: {entry['replicas']} replicas at "
            f"{entry['replicas']} times the goodput of one: {100 * several['attainment']:.1f} % keep the relaxed SLO "
            f"(one: {100 * one['attainment']:.1f} %), "
            f"{joules(several['joules_per_token'])}/token ({joules(one['joules_per_token'])}).\n"
        )
    yield (
        "- Refused shapes: "
        + ("; ".join(f"{cell['model']} {cell['system']}: {cell['refused']}" for cell in study.refused) or "none")
        + ".\n"
    )


def _traces(study: Study) -> Iterator[str]:
    if not study.traces:
        return
    yield _TRACES.format(finding=under_traces(study))
    rows = []
    for entry in study.traces:
        full, less = (entry["trace"][str(share)] for share in (1.0, 0.7))
        parts = [f"{100 * run['attainment']:.0f} %" for run in (entry["poisson"], full, less)]
        energy = [joules(run["joules_per_token"]) for run in (entry["poisson"], full)]
        rows.append((MODELS[entry["model"]], SYSTEMS[entry["system"]], entry["traffic"], *parts, *energy))
    columns = ("", "", "", "Poisson", "trace", "trace, 70 % of the rate", "J/token, Poisson", "J/token, trace")
    yield table(columns, rows)


def _all_shapes(study: Study) -> Iterator[str]:
    yield "\n## All replicas\n\nGoodput in requests/s of every shape that was run.\n\n"
    rows = []
    for model in study.models:
        for system, name in SYSTEMS.items():
            for cell in study.shapes(model, system, CONVERSATION):
                code = next(each for each in study.shapes(model, system, CODE) if each["shape"] == cell["shape"])
                goodputs = [goodput_of(cell), goodput_of(cell, STRICT), goodput_of(code)]
                rows.append(
                    (
                        MODELS[model],
                        name,
                        replica_label(cell),
                        f"{cell['mm2']:,.0f}",
                        *(digits(each) if each else "none" for each in goodputs),
                    )
                )
    yield table(("", "", "replica", "mm2", "conversation, relaxed", "conversation, strict", "code, relaxed"), rows)


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float) -> str:
    """In s or ms."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def joules(value: float) -> str:
    """In J or mJ."""
    return f"{value:.3g} J" if value >= 1 else f"{1000 * value:.3g} mJ"
