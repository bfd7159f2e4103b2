"""What must be read beside the figures of a run, each in a sentence.

Requests turned away or cut off, saturation; what is not known of devices, or not like others; power; faults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from pimserve.cluster.base.figures import TOO_LONG, count, figure, named, share
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.scheduler.outcomes import ALL
from pimserve.scheduler.stability import SATURATED, TOO_SHORT
from pimserve.scheduler.summary_sections import Figures, InSystem, Requests

_CUT_OFF = 0.01  # share of the requests from which on their absence shows in a latency's tail
_BACKLOG, _BACKLOG_SHARE = 10, 0.1  # waiting when the last one arrived: requests, and of those in the system


def caveats(figures: Figures, limits_tokens: Mapping[str, int]) -> Iterator[str]:
    """The sentences, gravest first.

    Args:
        figures: of a run.
        limits_tokens: most tokens of a request, by the reason for which longer ones are rejected.
    """
    requests = figures.requests
    if not requests.finished and requests.total:
        yield _nothing_finished(requests, _why_unfinished(figures))
    if requests.total and not requests.measured:
        yield "no request arrived in the measured window: latencies and SLO are of none"
    if requests.rejected:
        yield _rejected(figures, limits_tokens)
    if requests.measured_unfinished > _CUT_OFF * requests.measured:
        yield _cut_off(figures)
    if figures.stability == SATURATED:
        yield _saturated(figures.in_system)
    elif figures.stability == TOO_SHORT and _backlog(figures.in_system):
        yield _too_short(figures.in_system)


def caveats_of_devices(figures: Figures, tdp_w: float | None, pools: Sequence[PlacedPool]) -> Iterator[str]:
    """What hangs on the devices: passive power and precision, more power than they are sold for, simulated faults.

    Args:
        figures: of a run.
        tdp_w: power at which all devices are sold, where it is known.
        pools: what it ran on.
    """
    energy, end_s = figures.energy, figures.end_s
    without = {each.label: each.plan.passive for pool in pools if pool.plan.passive is None for each in pool.members}
    if without and energy.passive_power != "left_out":
        unknown, beside = (
            " and ".join(label for label, passive in without.items() if (passive is None) == missing)
            for missing in (True, False)
        )
        too = f", and without that of {beside} in the same replicas" if beside else ""
        yield f"passive power of {unknown} is not known: the energy is without it{too}"
    held = [asdict(pool.replica.precision) for pool in pools]
    for key in held[0]:
        if any(types[key] != held[0][key] for types in held):
            yield f"{named(key)} of the pools differ in precision: {' and '.join(str(types[key]) for types in held)}"
    if tdp_w and end_s and energy.joules > tdp_w * end_s:  # no limit of power slows devices down here
        watts = energy.joules / end_s
        yield f"mean power, {watts:,.0f} W, exceeds the devices' TDP, {tdp_w:,.0f} W: real ones would slow down"
    if figures.faults is not None:
        yield f"faults were simulated: {len(figures.faults.events)} took place"


def _why_unfinished(figures: Figures) -> str:
    """What happened to the requests that neither finished nor were rejected."""
    if figures.faults is None or figures.faults.replicas_left:
        return "were cut off by the end of the run"
    return "were never served to the end, as no replica was left to take requests"


def _nothing_finished(requests: Requests, why_unfinished: str) -> str:
    parts = ((requests.rejected, "were rejected"), (requests.unfinished, why_unfinished))
    total = count(requests.total)
    said = [f"{count(number)} of {total} {what}" for number, what in parts if number]
    return f"no request finished: {', '.join(said)}"


def _rejected(figures: Figures, limits_tokens: Mapping[str, int]) -> str:
    requests, tokens = figures.requests, figures.tokens
    of_tokens = share(tokens.prompt_rejected / (tokens.prompt + tokens.prompt_rejected))
    reasons = [
        f"{count(number)} {TOO_LONG[reason]} ({count(limits_tokens[reason])} tokens)"
        for reason, number in requests.rejected_by_reason
        if number
    ]
    return (
        f"{count(requests.rejected)} of {count(requests.total)} requests were rejected, with {of_tokens} of the "
        f"prompt tokens: {', '.join(reasons)}"
    )


def _cut_off(figures: Figures) -> str:
    unfinished, measured = figures.requests.measured_unfinished, figures.requests.measured
    said = (
        f"{count(unfinished)} of {count(measured)} measured requests ({share(unfinished / measured)}) "
        f"{_why_unfinished(figures)}: latencies leave out what is not known of them"
    )
    censored = figures.slo.censored.get(ALL)
    return said + (f", and SLO attainment {count(censored)} of them (censored)" if censored else "")


def _backlog(in_system: InSystem) -> bool:
    """Whether so many wait that saturation is likely; ordinary short runs go without a warning."""
    waiting = in_system.waiting_at_last_arrival
    return waiting >= _BACKLOG and waiting > _BACKLOG_SHARE * in_system.at_last_arrival


def _too_short(in_system: InSystem) -> str:
    return (
        "too short to tell whether it is saturated: "
        f"{count(in_system.waiting_at_last_arrival)} of the {count(in_system.at_last_arrival)} requests in the "
        "system waited when the last one arrived; latencies may grow with the length of the run"
    )


def _saturated(in_system: InSystem) -> str:
    return (
        f"saturated: {count(in_system.at_last_arrival)} requests were in the system when the last one arrived, "
        f"{count(in_system.waiting_at_last_arrival)} of them waiting, and it kept "
        f"{figure(in_system.growth_per_arrival)} of each that arrived; latencies grow with the length of the run"
    )
