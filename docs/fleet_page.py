"""The page fleet_validation.md: measured fleets beside the same fleets simulated."""

from __future__ import annotations

from collections.abc import Iterator

from tables import number, table

from pimserve.cluster.validation.fleet_figures import QUANTITIES
from pimserve.cluster.validation.fleet_run import Fleet, FleetRuns
from pimserve.cluster.validation.targets import Finding
from pimserve.cluster.validation.validate_fleets import Case, judge_fleet, read_fleets

_HEAD = """# Measured fleets

Written by `python docs/pages.py`. Fleets that others have built and measured, and the same fleets simulated, by
`pimserve validate fleets`: {passed} of {all} figures are within their tolerance, and each of the others has its cause
beside it. One number was taken from rows of this page, the 55 ms in front of the ladder's replicas, and changes no
throughput; kernels and memory are those of the `measured` setting ([gpu.md](gpu.md)), calibrated on timed operators and
on other served systems.

How each is run: stage after stage, with [a prefix cache](prefix_cache.md) that stays from one to the next. A stage's
throughput is the output tokens of its requests over the time from the first one until the last one's end, and TTFT is
the client's, as inference-perf has them. Runs of such fleets differ by 5 to 20 % at one rate, so that a tolerance of
15 % is about what one run can show. The last two, a replayed trace and another simulator, are asked for an order.

```sh
pimserve validate fleets                                                             # every row below
pimserve validate fleets --fleet llm-d-ladder --stage 12:60 --stage 27:28            # rates of your own
pimserve validate fleets --fleet llm-d-ladder --router least_tokens                  # another router, all stages
pimserve validate fleets --fleet llm-d-ladder --stage 43:36 --router '{name: dynamo, temperature: 1}'   # its parameters
pimserve validate fleets --fleet llm-d-pressure --set scheduler.kv_tiers=[]          # another key of its scenario
pimserve validate fleets --cases FILE                                                # fleets and rows of your own
```
"""

_FORM = """## Fleets of your own

`--cases FILE` takes `{"fleets": {...}, "cases": [...]}` as `cluster/validation/fleet_cases.json` has it. A fleet is a
`title`, `sources`, what is `assumed`, a `scenario` ([reference](scenario.md)), and stages: `warmup` and `ladder`, each
`[requests per second, seconds]`; without stages the scenario's own arrivals are the one stage. A case has an `id`, the
`quantity`, its inputs (`case`: `fleet`, `router`, `set` for other keys of the scenario, and those below), what was
`published`, a `tolerance` and its kind (`tolerance_kind`: `rel`, `abs`, or `interval` for `[low, high]`), the source
(`provenance`), and the `cause` if a miss is understood: without one it is exit code 1.

"""


def page() -> str:
    """The whole page."""
    fleets, cases = read_fleets()
    runs = FleetRuns(fleets)
    findings = [judge_fleet(case, runs) for case in cases]
    parts = [_HEAD.format(passed=sum(finding.passed is True for finding in findings), all=len(findings))]
    for name, fleet in fleets.items():
        mine = [(case, found) for case, found in zip(cases, findings, strict=True) if case.figure.fleet == name]
        parts.append("\n".join(_section(name, fleet, mine)))
    parts.append(_FORM)
    rows = [(f"`{name}`", " ".join((form.__doc__ or "").split()), _inputs(form)) for name, form in QUANTITIES.items()]
    parts.append(table(("quantity", "what", "inputs"), rows))
    return "\n".join(parts)


def _inputs(form: type) -> str:
    known = {"fleet", "router", "set"}
    return ", ".join(f"`{key}`" for key in form.model_fields if key not in known)  # type: ignore[attr-defined]


def _section(name: str, fleet: Fleet, rows: list[tuple[Case, Finding]]) -> Iterator[str]:
    yield f"## {fleet.title}\n"
    yield f"`--fleet {name}`. Sources:\n"
    yield from (f"- {source}" for source in fleet.sources)
    yield "\nAssumed, as it is not stated:\n"
    yield from (f"- {each}" for each in fleet.assumed)
    yield ""
    causes = list(dict.fromkeys(found.note for _, found in rows if not found.passed and found.note))
    yield table(
        ("id", "figure", "measured", "ours", "ratio", "tolerance", ""),
        [_row(case, found, causes) for case, found in rows],
    )
    yield from (f"{place}. {cause}" for place, cause in enumerate(causes, 1))
    if causes:
        yield ""


def _row(case: Case, found: Finding, causes: list[str]) -> tuple[str, ...]:
    inside = found.tolerance_kind == "interval"
    percent = "inside" if inside and not found.tolerance else f"{100 * found.tolerance:g} %"
    missed = f"missed ({causes.index(found.note) + 1})" if found.note in causes else "MISSED"
    inputs = ", ".join(f"{key} {value}" for key, value in case.target.case.items() if key not in {"fleet", "rates"})
    return (
        f"`{found.id}`",
        f"`{found.quantity}` {inputs}",
        number(found.published) if found.published is not None else "-",
        "-" if found.ours is None else number(found.ours),
        "-" if inside or found.ratio is None else f"{found.ratio:.2f}",
        f"{found.tolerance:g}" if found.tolerance_kind == "abs" else percent,
        "ok" if found.passed else missed,
    )
