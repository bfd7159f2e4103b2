"""Holds the event-driven model of 3D AIMC against the reference simulator, 3D-SiM (`pimserve validate aimc`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path

from pimserve.cluster.validation.aimc_case import Case, Refused, read_cases, short_name
from pimserve.cluster.validation.targets import Finding
from pimserve.device_models.aimc.event.graph import COMPAT, Sequence
from pimserve.device_models.aimc.event.simulate import Outcome, simulate
from pimserve.device_models.aimc.operation_costs import PS_PER_NS
from pimserve.errors import InputError

PUBLISHED = ("aimc_cases.json", "aimc_paper_scale.json")
EXACT = 1e-9  # relative; sums of the same terms differ by their rounding
TIMED = 1e-3  # relative; operations of equal priority may change places
_BY_HAND = "-hand-"  # in the id of a case that can be worked out on paper

_KINDS = {
    "tier_linear": "mvm",
    "communication": "hop",
    "mha": "attention",
    "layer_norm": "norm",
    "digital_relu": "activation",
    "digital_gelu": "activation",
    "digital_add": "add",
    "multinomial": "sampler",
}


def published_cases() -> list[Case]:
    """The cases that come with the package: eighteen small ones, and one at the scale of the paper."""
    cases: list[Case] = []
    for name in PUBLISHED:
        with resources.as_file(resources.files("pimserve.cluster.validation") / name) as path:
            cases += [case for case in read_cases(path) if isinstance(case, Case)]
    return cases


def validate_aimc(cases_path: Path | None = None, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Run all cases of a file, in its order.

    A case that cannot be run is a finding without a figure of ours, which does not pass; its note says why.

    Args:
        cases_path: a file in the form of the package's own, or None for these.
        progress: takes (cases that are done, all cases).

    Raises:
        InputError: the file is malformed, or none of its cases can be run; names file and case.
    """
    cases = published_cases() if cases_path is None else list(read_cases(cases_path))
    findings: list[Finding] = []
    for done, case in enumerate(cases, start=1):
        findings += [_not_run(case)] if isinstance(case, Refused) else _judged(case)
        if progress is not None:
            progress(done, len(cases))
    if all(finding.ours is None for finding in findings):
        raise InputError("", "\n".join(finding.note for finding in findings))
    return findings


def _judged(case: Case) -> list[Finding]:
    try:
        return judge(case)
    except InputError as error:
        return [_not_run(Refused(case.id, str(error)))]


def _not_run(case: Refused) -> Finding:
    return Finding(
        id=case.id,
        quantity="case",
        case="not run",
        published=None,
        ours=None,
        ratio=None,
        tolerance=EXACT,
        tolerance_kind="rel",
        passed=False,
        method="event-driven model",
        note=case.reason,
    )


def run_case(case: Case) -> Outcome:
    """Simulate a case as the reference simulator does."""
    workload = case.workload
    return simulate(
        case.network,
        case.chip,
        case.mapping,
        [Sequence(workload.start_len, workload.target_len - workload.start_len)] * workload.sequences,
        rules=COMPAT,
        kv_caching=case.kv_caching,
        routing=case.routing,
        communication=case.communication,
    )


def judge(case: Case) -> list[Finding]:
    """Run a case, and hold every figure that it has against ours.

    Raises:
        InputError: the case has no figure at all, or its unit costs lead out of the range of numbers.
    """
    try:
        outcome = run_case(case)
    except OverflowError:
        raise InputError(case.where, "the run takes more than 2^63 ps; lower its costs") from None
    findings = _Comparison(case, outcome).findings()
    if all(finding.passed is None for finding in findings):
        raise InputError(case.where, "must have a result or derived value that ours can be held against")
    return findings


class _Comparison:
    """The figures of one case, theirs and ours."""

    def __init__(self, case: Case, outcome: Outcome) -> None:
        self._case = case
        self._outcome = outcome
        self._about = case.describe()
        self._found: list[Finding] = []

    def findings(self) -> list[Finding]:
        """All figures, in the order in which they are shown."""
        case, outcome = self._case, self._outcome
        result = case.result
        timed = EXACT if _BY_HAND in case.id else TIMED
        self._number("latency, ns", result.latency_ns, outcome.makespan_ps / PS_PER_NS, timed)
        self._tokens(timed)
        self._number("energy, nJ", result.energy_nJ, outcome.total_energy_nj, timed)
        energies = result.energy_breakdown_nJ
        self._kinds(
            "active energy, nJ", None if energies is None else energies.active(), self._by_kind(outcome.energy_nj)
        )
        self._number("FLOPs", result.flops, outcome.flops, EXACT)
        counts = result.op_counts
        self._kinds("operations", None if counts is None else counts.model_dump(), self._by_kind(outcome.op_counts))
        times = result.op_latency_sums_ns
        ours = {kind: ps / PS_PER_NS for kind, ps in self._by_kind(outcome.op_latency_ps).items()}
        self._kinds("operation time, ns", None if times is None else times.active(), ours)
        assert outcome.peak_memory_bytes is not None  # COMPAT counts it
        self._number("peak memory, B", result.peak_memory_bytes, outcome.peak_memory_bytes, EXACT)
        self._number("parameters", case.derived.parameters, case.network.parameters, EXACT)
        self._grids()
        self._mapping()
        mvms = case.derived.mvms_per_tile
        self._alike(
            "MVMs of tiles alike",
            None if mvms is None else {f"tile {tile}": given for tile, given in enumerate(mvms)},
            {f"tile {tile}": ours for tile, ours in enumerate(outcome.mvms_per_tile)},
        )
        return self._found

    def _by_kind(self, ours: Mapping[str, float]) -> dict[str, float]:
        """Figures of ours under the reference simulator's names, attention and reading its cache apart."""
        other = "digital_gelu" if self._case.network.activation == "relu" else "digital_relu"
        figures = {theirs: 0 if theirs == other else ours[kind] for theirs, kind in _KINDS.items()}
        if "attention_dram" in ours:
            figures["mha.comp"] = figures.pop("mha")
            figures["mha.dram"] = ours["attention_dram"]
        return figures

    def _tokens(self, tolerance: float) -> None:
        given = self._case.result.token_finish_ns
        ours = {
            f"sequence {sequence}, token {token}": ps / PS_PER_NS
            for sequence, times in enumerate(self._outcome.token_finish_ps)
            for token, ps in enumerate(times)
        }
        if not given:
            self._add("last token, ns", None, max(ours.values()), tolerance, None)
            return
        theirs = {
            f"sequence {sequence}, token {token}": ns
            for sequence, times in given.items()
            for token, ns in enumerate(times)
        }
        off = [key for key, ns in theirs.items() if not math.isclose(ours[key], ns, rel_tol=tolerance)]
        note = f"{len(off)} of {len(theirs)} tokens; {_first(off, theirs, ours)}" if off else ""
        last = max(ours[key] for key in theirs)
        self._add("last token, ns", max(theirs.values()), last, tolerance, not off, note)

    def _grids(self) -> None:
        case = self._case
        rows, cols = case.chip.tier_rows, case.chip.tier_cols
        given = case.derived.chunk_grid
        self._alike(
            "chunk grids alike",
            None if given is None else {short_name(name): tuple(grid) for name, grid in given.items()},
            {matrix.name: matrix.grid(rows, cols) for matrix in case.network.matrices},
        )

    def _mapping(self) -> None:
        case = self._case
        ours = {
            f"{matrix.name}, chunk {chunk}": (tile, tier)
            for m, matrix in enumerate(case.network.matrices)
            for chunk, (tile, tier) in enumerate(zip(case.mapping.tiles[m], case.mapping.tiers[m], strict=True))
        }
        quantity = "chunks placed alike"
        if case.mapping_given:
            self._add(quantity, None, len(ours), EXACT, None, "taken over")
            return
        given = case.derived.mapping
        theirs = None
        if given is not None:
            theirs = {
                f"{short_name(name)}, chunk {chunk}": (place[0], place[1])
                for name, places in given.items()
                for chunk, place in enumerate(places)
            }
        self._alike(quantity, theirs, ours)

    def _number(self, quantity: str, theirs: float | None, ours: float, tolerance: float) -> None:
        passed = None if theirs is None else math.isclose(ours, theirs, rel_tol=tolerance)
        self._add(quantity, theirs, ours, tolerance, passed)

    def _kinds(self, quantity: str, theirs: dict[str, float] | None, ours: dict[str, float]) -> None:
        """Figures by kind of operation, shown as their sum."""
        total = sum(ours.values())
        if theirs is None:
            self._add(quantity, None, total, EXACT, None)
            return
        off = [kind for kind, value in theirs.items() if not math.isclose(ours[kind], value, rel_tol=EXACT)]
        self._add(quantity, sum(theirs.values()), total, EXACT, not off, _first(off, theirs, ours))

    def _alike(self, quantity: str, theirs: Mapping[str, object] | None, ours: Mapping[str, object]) -> None:
        """Things by name, shown as how many there are and how many are the same here."""
        if not theirs:
            self._add(quantity, None, len(ours), EXACT, None)
            return
        off = [name for name, value in theirs.items() if ours.get(name) != value]
        self._add(quantity, len(theirs), len(theirs) - len(off), EXACT, not off, _first(off, theirs, ours))

    def _add(
        self,
        quantity: str,
        theirs: float | None,
        ours: float,
        tolerance: float,
        passed: bool | None,
        note: str = "",
    ) -> None:
        ratio = ours / theirs if theirs else math.inf
        self._found.append(
            Finding(
                id=self._case.id,
                quantity=quantity,
                case=self._about,
                published=theirs,
                ours=ours,
                ratio=ratio if math.isfinite(ratio) else None,
                tolerance=tolerance,
                tolerance_kind="rel",
                passed=passed,
                method="event-driven model",
                note=note or ("not given" if passed is None else ""),
            )
        )


def _first(names: Iterable[str], theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    """The first difference in words."""
    return next((f"{name}: {theirs[name]} there, {ours.get(name, 'nothing')} here" for name in names), "")
