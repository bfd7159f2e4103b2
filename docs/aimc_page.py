"""The page aimc_validation.md: the AIMC models beside the reference simulator, each other, and a bound by hand."""

from __future__ import annotations

from collections.abc import Iterator

from tables import number, table

from pimserve.cluster.validation.aimc_bound import compared
from pimserve.cluster.validation.aimc_plan import BRACKET, SETTINGS, STRATEGIES, Point, grid, median_error, within
from pimserve.cluster.validation.targets import Finding
from pimserve.cluster.validation.validate_aimc import validate_aimc

_HEAD = """# The AIMC models, validated

Written by `python docs/pages.py`. How the models work is in [aimc.md](aimc.md).

## Against the reference simulator

The event-driven model with the reference simulator's rules (`pimserve validate aimc`): {cases} cases, {met} of {all}
figures met. Counts, FLOPs, mapping, active energy and peak memory must be equal, latency within 0.1 % (equal in the
`hand` cases).

"""

_PLAN = """
## The cost plan against the event-driven model

Both with physical rules and the unit costs of `aimc-realistic`, on small chips (8 digital and 2 attention units).
Ratio: time of the event-driven model over the plan's. On the reference simulator's cases the ratio to a bound of the
same form, T1 + (B - 1) w, is {low} to {high}; the last column says how many points lie in that bracket.

"""

_POINTS = """
### Decode steps: ratio by context (rows) and requests (columns)

"""

_PROMPTS = """
### Prompts: ratio by requests x prompt tokens

"""

_WHY = """
Where the plan is off:

- Above 1: requests that queue at two kinds of station in turn (8 experts, 8 requests); experts scattered over tiles,
  where the busiest tile depends on which experts happen to be chosen; latent attention, whose tiles are read once per
  head.
- Below 1: the plan takes the worst order of requests as soon as the first comes back before the last was served, and
  some orders are kinder.

## Against a bound by hand

Mixtral-8x7B, a decode step. The bound takes one chain without contention (138 us and reading the cache) and the busiest
resource's work for every further request, evenly spread over the chips. With a mapping, whole experts may need more
chips, and each layer's KV cache lies on one chip, so that at most 32 memories are in use, and the chip with most layers
decides what a further request adds: *corrected* is the bound with these two. The last columns say what ours is made
of: one request's chain with its attention, what each further request adds to a step, and active and passive energy per
token.

What is left (ours over corrected), line by line:

- chain: 162 us without attention and the first accesses to the memory (3 us), where the bound has 138. The product of
  the gated experts' two branches is 14.5 us of the difference; the rest are norms, sums and waits for shared tiles,
  which the bound takes more coarsely;
- per further request: first accesses and writes, 0.6 us on the chip with most layers;
- active energy: border chunks, partial sums of all columns, norms and products: 1.31 mJ for the weights' part where the
  bound has 1.27;
- passive energy follows the chain at one request, and the step at many.

"""


def page() -> str:
    """The whole page."""
    findings = validate_aimc()
    parts = [
        _HEAD.format(
            cases=len({finding.id for finding in findings}),
            met=sum(finding.passed is True for finding in findings),
            all=sum(finding.passed is not None for finding in findings),
        ),
        table(("case", "latency, ns", "ours", "energy, nJ", "ours", "peak memory, B", "ours"), list(_cases(findings))),
        _PLAN.format(low=BRACKET[0], high=BRACKET[1]),
    ]
    points = list(grid())
    parts.append(
        table(
            ("model", "mapping", "step", "points", "least", "most", "median error", "in the bracket"),
            list(_summary(points)),
        )
    )
    parts += [_POINTS, *_decodes(points), _PROMPTS, *_prompts(points), _WHY, _bound()]
    return "".join(parts)


def _cases(findings: list[Finding]) -> Iterator[tuple[str, ...]]:
    quantities = ("latency, ns", "energy, nJ", "peak memory, B")
    for case in dict.fromkeys(finding.id for finding in findings):
        mine = {finding.quantity: finding for finding in findings if finding.id == case}
        cells = [f"`{case}`"]
        for quantity in quantities:
            finding = mine.get(quantity)
            given = finding is not None and finding.published is not None
            cells.append(number(finding.published) if finding is not None and finding.published is not None else "-")
            cells.append(number(finding.ours) if given and finding is not None else "-")
        yield tuple(cells)


def _summary(points: list[Point]) -> Iterator[tuple[str, ...]]:
    for step in ("decode", "prompt"):
        mine = [point for point in points if point.step == step]
        yield ("**all**", "", step, *_figures(mine))
    for setting in SETTINGS:
        for strategy in STRATEGIES:
            for step in ("decode", "prompt"):
                mine = [p for p in points if (p.setting, p.strategy, p.step) == (setting.name, strategy, step)]
                yield (setting.name, f"`{strategy}`", step, *_figures(mine))


def _figures(points: list[Point]) -> tuple[str, ...]:
    ratios = [point.ratio for point in points]
    return (
        str(len(points)),
        f"{min(ratios):.2f}",
        f"{max(ratios):.2f}",
        f"{100 * median_error(points):.1f} %",
        f"{100 * within(points):.0f} %",
    )


def _decodes(points: list[Point]) -> Iterator[str]:
    decodes = [point for point in points if point.step == "decode"]
    batches = sorted({point.requests for point in decodes})
    rows = []
    for setting in SETTINGS:
        for strategy in STRATEGIES:
            for context in sorted({point.tokens for point in decodes}):
                ratios = {
                    p.requests: f"{p.ratio:.2f}"
                    for p in decodes
                    if (p.setting, p.strategy, p.tokens) == (setting.name, strategy, context)
                }
                rows.append((setting.name, f"`{strategy}`", str(context), *(ratios[batch] for batch in batches)))
    yield table(("model", "mapping", "context", *map(str, batches)), rows)


def _prompts(points: list[Point]) -> Iterator[str]:
    prompts = [point for point in points if point.step == "prompt"]
    shapes = list(dict.fromkeys((point.requests, point.tokens) for point in prompts))
    rows = []
    for setting in SETTINGS:
        for strategy in STRATEGIES:
            ratios = {
                (p.requests, p.tokens): f"{p.ratio:.2f}"
                for p in prompts
                if (p.setting, p.strategy) == (setting.name, strategy)
            }
            rows.append((setting.name, f"`{strategy}`", *(ratios[shape] for shape in shapes)))
    yield table(("model", "mapping", *(f"{requests} x {tokens}" for requests, tokens in shapes)), rows)


def _bound() -> str:
    columns = (
        "system",
        "chips",
        "context",
        "requests",
        "tokens/s",
        "corrected",
        "ours",
        "",
        "mJ",
        "corrected",
        "ours",
        "",
        "chain, us",
        "per request, us",
        "active, mJ",
        "passive, mJ",
    )
    rows = []
    for row in compared():
        bound = row.bound
        chips = str(bound.chips) if bound.chips == bound.mapped_chips else f"{bound.chips}, mapped {bound.mapped_chips}"
        rows.append(
            (
                *(bound.label, chips, str(bound.context), str(bound.requests)),
                "-" if bound.tokens_per_s is None else number(bound.tokens_per_s),
                number(row.corrected_tokens_per_s),
                number(row.tokens_per_s),
                f"{row.speed_ratio:.2f}",
                number(bound.mj_per_token),
                number(row.corrected_mj_per_token),
                number(row.mj_per_token),
                f"{row.energy_ratio:.2f}",
                *(number(part) for part in (row.chain_us, row.token_us, row.active_mj, row.passive_mj)),
            )
        )
    return table(columns, rows)
