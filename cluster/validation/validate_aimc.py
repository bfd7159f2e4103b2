"""Holds the event-driven model of 3D AIMC against the reference simulator, 3D-SiM (`pimserve validate aimc`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from pimserve.cluster.validation.aimc_case import Case, Refused, read_cases, short_name
from pimserve.cluster.validation.targets import Finding, package_file
from pimserve.device_models.aimc.event.graph import COMPAT, Sequence
from pimserve.device_models.aimc.event.simulate import Outcome, simulate
from pimserve.device_models.aimc.network import Network
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
    return [case for name in PUBLISHED for case in read_cases(package_file(name)) if isinstance(case, Case)]


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
        if isinstance(case, Refused):
            findings.append(_not_run(case.id, case.reason))
        else:
            try:
                findings += judge(case)
            except InputError as error:
                findings.append(_not_run(case.id, str(error)))
        if progress is not None:
            progress(done, len(cases))
    if all(finding.ours is None for finding in findings):
        raise InputError("", "\n".join(finding.note for finding in findings))
    return findings


def run_case(case: Case) -> Outcome:
    """Simulate a case as the reference simulator does."""
    workload = case.form.workload
    return simulate(
        case.network,
        case.chip,
        case.mapping,
        [Sequence(workload.start_len, workload.target_len - workload.start_len)] * workload.sequences,
        rules=COMPAT,
        kv_caching=case.form.hardware.kv_caching,
        routing=case.routing,
        communication=case.form.communication,
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
    findings = list(_findings(case, outcome))
    if all(finding.passed is None for finding in findings):
        raise InputError(case.where, "must have a result or derived value that ours can be held against")
    return findings


def _findings(case: Case, outcome: Outcome) -> Iterator[Finding]:
    """All figures of a case, in the order in which they are shown."""
    result, derived, network = case.form.result, case.form.derived, case.network
    figures = _Figures(case.id, case.describe())
    timed = EXACT if _BY_HAND in case.id else TIMED
    yield figures.number("latency, ns", result.latency_ns, outcome.makespan_ps / PS_PER_NS, timed)
    theirs_ns = _tokens(result.token_finish_ns or {})
    ours_ns = _tokens({str(n): [ps / PS_PER_NS for ps in times] for n, times in enumerate(outcome.token_finish_ps)})
    same_tokens = {name: ours_ns[name] for name in theirs_ns or ours_ns}
    yield figures.parts("last token, ns", theirs_ns, same_tokens, max, timed, "tokens")
    yield figures.number("energy, nJ", result.energy_nJ, outcome.total_energy_nj, timed)
    energies, counts, times = result.energy_breakdown_nJ, result.op_counts, result.op_latency_sums_ns
    energies_nj = _by_kind(outcome.energy_nj, network)
    yield figures.parts("active energy, nJ", energies.active() if energies else {}, energies_nj, sum)
    yield figures.number("FLOPs", result.flops, outcome.flops)
    yield figures.parts("operations", counts.model_dump() if counts else {}, _by_kind(outcome.op_counts, network), sum)
    times_ns = {kind: ps / PS_PER_NS for kind, ps in _by_kind(outcome.op_latency_ps, network).items()}
    yield figures.parts("operation time, ns", times.active() if times else {}, times_ns, sum)
    assert outcome.peak_memory_bytes is not None  # COMPAT counts it
    yield figures.number("peak memory, B", result.peak_memory_bytes, outcome.peak_memory_bytes)
    yield figures.number("parameters", derived.parameters, network.parameters)
    grids = {short_name(name): tuple(grid) for name, grid in (derived.chunk_grid or {}).items()}
    tier = case.chip.tier_rows, case.chip.tier_cols
    yield figures.alike("chunk grids alike", grids, {matrix.name: matrix.grid(*tier) for matrix in network.matrices})
    places = {short_name(name): list(map(tuple, chunks)) for name, chunks in (derived.mapping or {}).items()}
    mapped = zip(network.matrices, case.mapping.tiles, case.mapping.tiers, strict=True)
    ours = _chunks({matrix.name: list(zip(tiles, tiers, strict=True)) for matrix, tiles, tiers in mapped})
    if case.mapping_given:
        yield figures.finding("chunks placed alike", None, len(ours), EXACT, None, "taken over")
    else:
        yield figures.alike("chunks placed alike", _chunks(places), ours)
    mvms = (derived.mvms_per_tile or [], outcome.mvms_per_tile)
    theirs_mvms, our_mvms = ({f"tile {tile}": count for tile, count in enumerate(tiles)} for tiles in mvms)
    yield figures.alike("MVMs of tiles alike", theirs_mvms, our_mvms)


def _tokens(times: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """Times of tokens by their names."""
    return {
        f"sequence {sequence}, token {token}": ns
        for sequence, of_one in times.items()
        for token, ns in enumerate(of_one)
    }


def _chunks(places: Mapping[str, Iterable[object]]) -> dict[str, object]:
    """Tile and tier of chunks by their names."""
    return {f"{name}, chunk {chunk}": place for name, chunks in places.items() for chunk, place in enumerate(chunks)}


def _by_kind(ours: Mapping[str, float], network: Network) -> dict[str, float]:
    """Figures of ours under the reference simulator's names, attention and reading its cache apart."""
    other = "digital_gelu" if network.activation == "relu" else "digital_relu"
    figures = {theirs: 0 if theirs == other else ours[kind] for theirs, kind in _KINDS.items()}
    if "attention_dram" in ours:
        figures["mha.comp"] = figures.pop("mha")
        figures["mha.dram"] = ours["attention_dram"]
    return figures


class _Figures:
    """Makes findings of a case: figures that are there, held against ours, or only shown."""

    def __init__(self, case_id: str, about: str) -> None:
        self._id, self._about = case_id, about

    def number(self, quantity: str, theirs: float | None, ours: float, tolerance: float = EXACT) -> Finding:
        """One figure."""
        passed = None if theirs is None else math.isclose(ours, theirs, rel_tol=tolerance)
        return self.finding(quantity, theirs, ours, tolerance, passed)

    def parts(
        self,
        quantity: str,
        theirs: Mapping[str, float],
        ours: Mapping[str, float],
        whole: Callable[[Iterable[float]], float],
        tolerance: float = EXACT,
        counted: str = "",
    ) -> Finding:
        """Figures by name, shown as a whole; `counted`: what they are called where the note says how many differ."""
        if not theirs:
            return self.finding(quantity, None, whole(ours.values()), tolerance, None)
        off = [name for name, value in theirs.items() if not math.isclose(ours[name], value, rel_tol=tolerance)]
        note = f"{len(off)} of {len(theirs)} {counted}; " if off and counted else ""
        note += _first(off, theirs, ours)
        return self.finding(quantity, whole(theirs.values()), whole(ours.values()), tolerance, not off, note)

    def alike(self, quantity: str, theirs: Mapping[str, object], ours: Mapping[str, object]) -> Finding:
        """Things by name, shown as how many there are and how many are the same here."""
        if not theirs:
            return self.finding(quantity, None, len(ours), EXACT, None)
        off = [name for name, value in theirs.items() if ours.get(name) != value]
        note = _first(off, theirs, ours)
        return self.finding(quantity, len(theirs), len(theirs) - len(off), EXACT, not off, note)

    def finding(
        self,
        quantity: str,
        theirs: float | None,
        ours: float | None,
        tolerance: float,
        passed: bool | None,
        note: str = "",
    ) -> Finding:
        """A figure as it is shown."""
        ratio = ours / theirs if theirs and ours is not None else math.inf
        return Finding(
            id=self._id,
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


def _not_run(case_id: str, reason: str) -> Finding:
    return _Figures(case_id, "not run").finding("case", None, None, EXACT, False, reason)


def _first(names: Iterable[str], theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    """The first difference in words."""
    return next((f"{name}: {theirs[name]} there, {ours.get(name, 'nothing')} here" for name in names), "")
