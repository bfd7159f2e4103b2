"""Time and energy of runs are the sums of what each of their steps takes."""

from collections import Counter

import pytest
from hypothesis import given

from pimserve.device_models.operators import CATEGORIES
from pimserve.device_models.plan import HOST, CostPlan, RowTerm
from tests.examples import examples
from tests.scheduler.law_runs import Run, runs

from .reference_mixed import dealt


@pytest.mark.medium
@examples(60)
@given(runs())
def test_row_terms_are_the_sums_of_their_steps(run: Run) -> None:
    """Energy by category, of those that only row terms have, and the host's busy time."""
    plan, logs = run.case.plan, run.served.logs
    energy = row_energy_pj(run)
    for category in ("fc", "communication", "step"):
        for kind in ("dram", "compute"):
            assert sum(log.energy_pj[category, kind] for log in logs) == energy[category, kind]
    host = [term for term in plan.rows if term.unit == HOST]
    for replica, log in enumerate(logs):
        assert (HOST in log.unit_fs) == bool(host)
        if host and plan.data_parallel == 1:
            steps = [(term, row_counts(step, term, plan)) for step in run.steps(replica) for term in host]
            assert log.unit_fs[HOST] == sum(
                term.time_fs(counts[term.rows]) for term, parts in steps for counts in parts
            )


def row_counts(step: tuple[int, ...], term: RowTerm, plan: CostPlan) -> list[dict[str, int]]:
    """What row terms of each kind count in each micro-batch of a step, or in all of it, for such a term."""
    _, _, decodes, _, prefill_tokens, chunks, outputs = step
    parts = 1
    if plan.micro_batches is not None and term.runs != "first":
        parts = plan.micro_batches.of_step(decodes + prefill_tokens)
    requests, prompts = (
        dealt(decodes, parts),
        [dealt(n, parts)[::-1] for n in (prefill_tokens, outputs - decodes, chunks)],
    )
    shares = zip(requests, *prompts, strict=True)
    return [{"tokens": d + t, "outputs": d + o, "decodes": d, "prompts": c, "requests": d + c} for d, t, o, c in shares]


def row_energy_pj(run: Run) -> Counter[tuple[str, str]]:
    """Energy of row terms by category and kind, from every single step."""
    found: Counter[tuple[str, str]] = Counter()
    for replica in range(len(run.blocks)):
        for step in run.steps(replica):
            for term in run.case.plan.rows:
                data_parallel = run.case.plan.data_parallel if term.stage == "attention" else 1
                for counts in row_counts(step, term, run.case.plan):
                    n, energy = counts[term.rows], term.energy
                    groups = min(data_parallel, n, counts["requests"])
                    found[term.category, "dram"] += energy.dram_const * groups + energy.dram_per_row * n
                    found[term.category, "compute"] += energy.compute_per_row * n
    return found


@pytest.mark.medium
@examples(40)
@given(runs())
def test_time_and_energy_are_the_sums_of_their_parts(run: Run) -> None:
    plan, summary, logs = run.case.plan, run.summary(), run.served.logs
    for log in logs:
        assert sum(log.category_fs.values()) == log.busy_fs
    joules = summary["energy"]["joules"]
    parts = [part for kinds in summary["energy"]["joules_by_category"].values() for part in kinds.values()]
    passive = summary["energy"]["passive_joules"]
    assert joules == pytest.approx(sum(parts) + (passive or 0), rel=1e-12)
    if plan.passive is not None:  # passive power is drawn all the time
        assert passive >= plan.passive.idle_uw * 1e-6 * run.served.end_s * len(logs) * (1 - 1e-9) - 1e-12
    # At least: each context token is read once per step, by each term of the plan without a window.
    single = [step for replica in range(len(logs)) for step in run.steps(replica)]
    context = sum(step[3] for step in single)
    full = sum(term.dram_per_token for term in plan.decode if term.window_tokens is None)
    read = sum(log.energy_pj["attention_decode", "dram"] for log in logs)
    read -= row_energy_pj(run)["attention_decode", "dram"]
    assert read >= full * context
    if all(term.window_tokens is None for term in plan.decode):
        assert read == full * context
    if single:
        assert sum(summary["time_share"].values()) == pytest.approx(1)
        assert set(summary["time_share"]) == set(CATEGORIES)
        assert 0 < summary["busy_share"] <= 1 + 1e-12
        assert summary["batch"]["mean_requests"] == pytest.approx(sum(s[2] + s[5] for s in single) / len(single))
