"""What the study of mixed replicas finds, in sentences that are held against its results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mixed_results import DEVICES, EQUALS, POWER, SILICON, Cell, Study, goodput_of
from mixed_systems import ATTAINMENT, CODE, CONVERSATION, MODELS, RELAXED, STRICT, SYSTEMS

_MIXTRAL, _GROK, _DEEPSEEK, _QWEN = MODELS
_WINNERS = (_MIXTRAL, _GROK)  # at equal power
_ON_CHIPS = ("gpu+aimc", "duplex+aimc")
_DEAD_SHARE = 0.3  # of the time; experts' devices that work less are mostly idle


class NotSaidError(Exception):
    """Results do not bear out a sentence of the page."""


def _holds(claim: bool, sentence: str) -> str:
    """The sentence.

    Raises:
        NotSaidError: the results do not bear it out.
    """
    if not claim:
        raise NotSaidError(f"the results do not say: {sentence}")
    return sentence


def _range(values: Iterable[float]) -> str:
    found = list(values)
    low, high = f"{min(found):.2g}", f"{max(found):.2g}"
    return low if low == high else f"{low} to {high}"


def _percent(values: Iterable[float]) -> str:
    found = list(values)
    low, high = f"{100 * min(found):.0f}", f"{100 * max(found):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _ratios(
    study: Study, system: str, equal: str, traffic: str = CONVERSATION, slo: str = RELAXED, to: str = "gpu"
) -> dict[str, float]:
    """Goodput of a system's fleet over another's, by model, where both keep the SLO."""
    found = {model: study.ratio(model, system, traffic, slo, equal, to) for model in study.models}
    return {model: ratio for model, ratio in found.items() if ratio is not None}


def _best(study: Study, system: str, model: str) -> Cell:
    cell = study.best(model, system)
    assert cell is not None
    return cell


def _run(study: Study, system: str, model: str) -> Mapping[str, Any]:
    run: Mapping[str, Any] = _best(study, system, model)[RELAXED]["goodput"]
    return run


def findings(study: Study) -> Iterator[str]:
    """What comes out."""
    from mixed_runs import CLOSE  # noqa: PLC0415 of the runs

    silicon = {
        (model, system, traffic): ratio
        for system in _ON_CHIPS
        for traffic in (CONVERSATION, CODE)
        for model, ratio in _ratios(study, system, SILICON, traffic).items()
    }
    best = max(silicon, key=lambda place: silicon[place])
    near = ", which the search does not tell apart" if silicon[best] * CLOSE > 1 else ""
    yield _holds(
        silicon[best] < CLOSE,
        "**At equal silicon, mixing with AIMC wins nowhere** at the relaxed SLO, under both kinds of traffic: it "
        f"reaches {_range(silicon.values())} of the goodput of GPUs. The best is {MODELS[best[0]]} on "
        f"{SYSTEMS[best[1]]} ({best[2]}){near}.",
    )
    devices = [r for s in _ON_CHIPS for t in (CONVERSATION, CODE) for r in _ratios(study, s, DEVICES, t).values()]
    yield _holds(max(devices) < 1, f"At equal device count it loses too: {_range(devices)} of the goodput of GPUs.")
    power = {system: _ratios(study, system, POWER) for system in _ON_CHIPS}
    won = {model: [ratios[model] for ratios in power.values()] for model in _WINNERS}
    code = [_ratios(study, system, POWER, CODE)[model] for system in _ON_CHIPS for model in _WINNERS]
    over_duplex = [_ratios(study, "duplex+aimc", POWER, to="duplex")[model] for model in _WINNERS]
    alone = {model: _ratios(study, "aimc", POWER)[model] for model in _WINNERS}
    yield _holds(
        min(*map(min, won.values()), *code, *over_duplex) > 1.5 and all(min(won[m]) > alone[m] for m in _WINNERS),
        "**At equal mean power it wins with Mixtral and Grok-1**: "
        f"{' and '.join(_range(ratios) for ratios in won.values())} times the goodput of GPUs (code: {_range(code)}), "
        f"and Duplex + AIMC {' and '.join(f'{ratio:.2g}' for ratio in over_duplex)} times that of Duplex alone, on "
        f"ideal devices. AIMC alone has {' and '.join(f'{ratio:.2g}' for ratio in alone.values())} times that of GPUs. "
        + _power_of_others(study, power),
    )
    yield _strict(study)
    duplex = [r for equal in EQUALS for r in _ratios(study, "duplex", equal).values()]
    yield _holds(
        min(duplex) > 0.85,
        f"**Duplex alone is never far behind GPUs**: {_range(duplex)} times the goodput of GPUs, by whatever is "
        f"held equal "
        "(conversation, relaxed). It has both kinds of unit in one device, and no link.",
    )
    pim = [r for equal in EQUALS for r in _ratios(study, "gpu+duplex", equal).values()]
    waits = _run(study, "gpu+duplex", _MIXTRAL)["waits"]["experts"]
    yield _holds(
        max(pim) < 1 and waits > 0.3,
        f"GPUs with experts on Duplex reach {_range(pim)} of the goodput of GPUs. With Mixtral attention waits "
        f"{100 * waits:.0f} % of the time: half of the processors compute all of the experts' part of prompts.",
    )
    yield _alone(study)
    measured = _ratios(study, "gpu-measured", SILICON).values()
    yield _holds(
        max(measured) < 0.7,
        f"All ratios are to *ideal* GPUs. With kernels as timed, GPUs reach {_range(measured)} of that; nobody can "
        f"time the others.",
    )


def _power_of_others(study: Study, power: Mapping[str, Mapping[str, float]]) -> str:
    """The models with which it does not win, at equal power."""
    parts = []
    for model in (_QWEN, _DEEPSEEK):
        found = [ratios[model] for ratios in power.values()]
        parts.append(f"{MODELS[model]} {_range(found)}")
    return f"Of the others, against GPUs: {', '.join(parts)}; {_over_duplex(study)}."


def _over_duplex(study: Study) -> str:
    over = _ratios(study, "duplex+aimc", POWER, to="duplex")
    told = ", ".join(f"{MODELS[model]} {ratio:.2g}" for model, ratio in over.items() if model not in _WINNERS)
    return f"Duplex + AIMC against Duplex alone: {told}"


def _strict(study: Study) -> str:
    """The strict SLO."""
    from mixed_runs import CLOSE  # noqa: PLC0415 of the runs

    over_gpu = {
        model: max(ratios)
        for model in study.models
        if (ratios := [r for s in _ON_CHIPS if (r := study.ratio(model, s, CONVERSATION, STRICT, SILICON)) is not None])
    }
    over_duplex = {
        model: study.ratio(model, "duplex+aimc", CONVERSATION, STRICT, SILICON, to="duplex") or 0.0
        for model in study.models
    }
    told_of = {model: ratio for model, ratio in over_duplex.items() if ratio > CLOSE}
    behind = [ratio for model, ratio in over_duplex.items() if model not in told_of]
    more = " and ".join(f"{MODELS[model]} {ratio:.2g}" for model, ratio in told_of.items() if model != _GROK)
    all_systems = {
        name: study.ratio(_GROK, name, CONVERSATION, STRICT, SILICON, to="duplex") or 0.0 for name in SYSTEMS
    }
    told = ", ".join(f"{MODELS[model]} {ratio:.2g}" for model, ratio in over_gpu.items())
    return _holds(
        min(over_gpu.values()) > 1
        and len(over_gpu) == len(MODELS)
        and told_of.get(_GROK, 0.0) == max(all_systems.values()),
        "**The strict SLO is where mixing beats GPUs**: the better of the two mixtures has, at equal silicon, this "
        f"multiple of their goodput: {told}. Duplex + AIMC reaches {_range(behind)} of the "
        f"goodput of Duplex alone, but with {MODELS[_GROK]} {told_of.get(_GROK, 0.0):.2g}, where it is the best of all "
        f"systems{', and with ' + more if more else ''}.",
    )


def _alone(study: Study) -> str:
    cells = [cell for model in study.models if (cell := study.best(model, "aimc")) is not None]
    none = [model for model in study.models if study.best(model, "aimc") is None]
    ratios = _ratios(study, "aimc", SILICON)
    tiles = max(cell[RELAXED]["goodput"]["busy"]["busiest_tile"] for cell in cells)
    return _holds(
        max(ratios.values()) < 0.5 and none == [_DEEPSEEK] and tiles < 0.1,
        f"**AIMC alone cannot take prompts.** It reaches {_range(ratios.values())} of the goodput of GPUs at equal "
        f"silicon, and keeps the SLO of {MODELS[_DEEPSEEK]} at no rate. Prompt attention of a layer runs on the chip "
        "that has the layer, on as many of its 8 attention units of 4 TFLOP/s as there are KV heads; no tile is busy "
        f"for more than {100 * tiles:.0f} % of the time. Attention elsewhere mends that.",
    )


def losses(study: Study) -> Iterator[str]:
    """Where mixing loses, and why."""
    idle = {model: _run(study, "duplex+aimc", model)["waits"]["work"] for model in (_DEEPSEEK, _QWEN)}
    yield _holds(
        max(idle.values()) < _DEAD_SHARE + 0.2 and idle[_DEEPSEEK] < _DEAD_SHARE,
        "**Chips that hold many experts stand idle.** Weights decide how many there are, not work: at its goodput "
        "those of DeepSeek-V3 "
        f"work {100 * idle[_DEEPSEEK]:.0f} % of the time, of Qwen3-235B {100 * idle[_QWEN]:.0f} %, and take "
        f"{_percent(_chip_share(study, model) for model in (_DEEPSEEK, _QWEN))} of the silicon.",
    )
    free = {model: _as_if_free(study, model) for model in study.models}
    told = ", ".join(f"{MODELS[model]} {ratio:.2g}" for model, ratio in free.items())
    yield _holds(
        min(free.values()) > 1,
        "**The chips' silicon is what loses**, not what attention can do without experts: counted by the "
        "silicon of the "
        f"devices of attention alone, goodput over that of GPUs would be: {told}.",
    )
    small = {model: study.shapes(model, "gpu+aimc", CONVERSATION)[0] for model in (_GROK, _DEEPSEEK, _QWEN)}
    link = [cell[RELAXED]["goodput"] for cell in small.values()]
    yield _holds(
        all(run["waits"]["link"] > 0.15 and run["waits"]["experts"] < 0.02 for run in link),
        "**The link, not experts, is what attention waits for** where a token goes to eight chips, or, with "
        f"{MODELS[_GROK]}, to ten: of 8 GPUs with the chips of all but Mixtral for "
        f"{_percent(run['waits']['link'] for run in link)} of the time, and for experts 1 % or less. Without mixing "
        "there is no such link.",
    )
    yield _larger(study)
    yield _cut(study)
    low = {
        system: [_best(study, system, model)["loads"]["0.1"] for model in study.models]
        for system in ("gpu", "duplex+aimc")
    }
    shares = [run["passive_joules_per_token"] / run["joules_per_token"] for run in low["duplex+aimc"]]
    times = [run["joules_per_token"] for run in low["duplex+aimc"]]
    gpu = [run["joules_per_token"] for run in low["gpu"]]
    worse = [one / other for one, other, model in zip(times, gpu, study.models, strict=True) if model != _MIXTRAL]
    yield _holds(
        min(shares) > 0.7 and times[0] < gpu[0],
        f"**Passive power at low load**: at a tenth of its goodput {_percent(shares)} of the energy of Duplex + AIMC "
        f"is passive. A token of "
        f"Mixtral then still takes {times[0] / gpu[0]:.2g} of what it takes on GPUs at a tenth of theirs; of the "
        f"other models {_range(worse)} times as much.",
    )


def _cut(study: Study) -> str:
    """Experts that are larger than a chip, against layers in turn."""
    in_turns, *cut = study.shapes(_GROK, "aimc", CONVERSATION)
    runs = [cell[RELAXED]["goodput"] for cell in (in_turns, max(cut, key=goodput_of))]
    rates, joules = ([run[key] for run in runs] for key in ("rate_per_s", "joules_per_token"))
    waits = _run(study, "duplex+aimc", _GROK)["waits"]["experts"]
    return _holds(
        rates[1] > 2 * rates[0] and joules[1] < joules[0] and waits < 0.05,
        "**An expert of Grok-1 does not go on one chip.** With whole layers on chips, one of 48 works at a time. With "
        f"each expert cut over five, all of 40 do: AIMC alone then has {rates[1] / rates[0]:.2g} times the goodput and "
        f"takes {joules[1] / joules[0]:.2g} of the energy a token, and attention elsewhere waits "
        f"{100 * waits:.0f} % of the time for experts. Partial sums pass between chips as on one package (450 GB/s, "
        "50 ns), which 40 chips of this size would hardly share; what board links change is in "
        "[aimc.md](../aimc.md#parts-of-a-model). And GPUs and Duplex hold Grok-1 in 16 bits here: with 8, as its "
        "weights were released, half as many would do, which was not run.",
    )


def _larger(study: Study) -> str:
    """More devices of attention on the same chips."""
    told = []
    for model in (_GROK, _DEEPSEEK, _QWEN):
        best: dict[int, float] = {}
        for cell in study.shapes(model, "duplex+aimc", CONVERSATION):
            devices = cell["groups"][0]["devices"]
            best[devices] = max(best.get(devices, 0.0), goodput_of(cell) / cell["mm2"] / study.density(model, "gpu"))
        assert list(best.values()) == sorted(best.values()), "goodput for its silicon grows with devices of attention"
        told.append(f"{MODELS[model]} " + ", ".join(f"{ratio:.2f} with {devices}" for devices, ratio in best.items()))
    return (
        "More devices of attention on the same chips help, and larger replicas than those tried may lose less: goodput "
        f"for its silicon over that of GPUs is, on Duplex + AIMC: {'; '.join(told)}."
    )


def _chip_share(study: Study, model: str) -> float:
    """Of a replica's silicon, what holds experts."""
    cell = _best(study, "duplex+aimc", model)
    return 1 - cell["groups"][0]["devices"] * _mm2_of(study, "duplex", model) / float(cell["mm2"])


def _mm2_of(study: Study, system: str, model: str) -> float:
    cell = _best(study, system, model)
    return float(cell["mm2"]) / int(cell["devices"])


def _as_if_free(study: Study, model: str) -> float:
    """Goodput per mm2 of the devices of attention over that of GPUs; the better of both mixtures."""
    found = [
        goodput_of(cell) / (cell["groups"][0]["devices"] * _mm2_of(study, kind, model))
        for system, kind in (("gpu+aimc", "gpu"), ("duplex+aimc", "duplex"))
        for cell in study.shapes(model, system, CONVERSATION)
    ]
    return max(found) / study.density(model, "gpu")


def under_traces(study: Study) -> str:
    """What Poisson arrivals hide."""
    kept = {
        traffic: [entry["trace"]["0.7"]["attainment"] for entry in study.traces if entry["traffic"] == traffic]
        for traffic in (CONVERSATION, CODE)
    }
    return _holds(
        min(kept[CONVERSATION]) >= ATTAINMENT and max(kept[CODE]) < ATTAINMENT,
        "Rates of conversations move within minutes, and at 70 % of the goodput all systems keep it. Code comes in "
        "bursts, and none does, on whatever devices: goodput under Poisson arrivals says nothing of such traffic but "
        "what a system can do at most.",
    )


def undemonstrated(study: Study) -> Iterator[str]:
    """Which assumptions decide."""
    for model in dict.fromkeys(entry["model"] for entry in study.sensitivity):
        heaviest = [name for name in study.by_weight(model) if not study.knobs[model][name].demonstrated][:2]
        yield _holds(
            "tiers per tile" in heaviest,
            f"{MODELS[model]} on Duplex + AIMC hangs most on **{' and '.join(heaviest)}**: "
            + "; ".join(_ends(study, model, name) for name in heaviest)
            + ".",
        )
    base, few = study.base(_MIXTRAL), study.end(_MIXTRAL, "tiers per tile", "low")
    assert few is not None
    one, other = (entry["half_load"]["joules_per_token"] for entry in (base, few))
    gpu = _run(study, "gpu", _MIXTRAL)["joules_per_token"]
    yield _holds(
        one < gpu < other and few["mm2"] > 2 * base["mm2"],
        "**The clear gains, energy with Mixtral and Grok-1, hang on a stack that nobody has built.** With 8 tiers, the "
        f"most that were, Mixtral takes {few['groups'][1]['devices']} chips in place of "
        f"{base['groups'][1]['devices']}, {few['mm2'] / base['mm2']:.1f} times the silicon, and {1000 * other:.0f} mJ "
        f"a token in place of {1000 * one:.0f}; ideal GPUs take {1000 * gpu:.0f} at their goodput. And they are made "
        "with 5-bit weights.",
    )


def _ends(study: Study, model: str, name: str) -> str:
    """Figures at both ends of an assumption."""
    knob = study.knobs[model][name]
    told = []
    for label, end in ((knob.low_label, "low"), (knob.high_label, "high")):
        entry = study.end(model, name, end)
        if entry is not None:
            goodput = entry["goodput"]["rate_per_s"] if entry["goodput"] else 0.0
            told.append(f"{label}: {goodput:.3g} requests/s, {entry['half_load']['joules_per_token']:.2g} J a token")
    base = study.base(model)
    goodput, joules = base["goodput"]["rate_per_s"], base["half_load"]["joules_per_token"]
    return f"{name} ({'; '.join(told)}; base: {goodput:.3g}, {joules:.2g})"
