"""What is measured. A case yields a `Figure` per simulation; the targets that it is held against stand beside it."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from processes import PIMSERVE, Simulation, run_process, simulate
from yardsticks import counter_loop_s, heap_loop_s

_HERE = Path(__file__).resolve().parent
_LLAMA = {"model": "llama-3.1-8b", "cluster": {"device": "h100", "devices_per_node": 1}}
_MIXTRAL = {"model": "mixtral-8x7b", "cluster": {"device": "duplex", "devices_per_node": 4, "experts": "tp"}}
_MIXTRAL_AIMC = {"model": "mixtral-8x7b", "cluster": {"device": "aimc-realistic", "devices_per_node": 6}}
_AZURE = {"preset": "azure-conv-2023"}
_LONG = {"lengths": {"input": {"kind": "fixed", "tokens": 1024}, "output": {"kind": "fixed", "tokens": 1024}}}


@dataclass(frozen=True)
class Target:
    """A limit that a figure is held against. `measured` in the unit that the name gives."""

    name: str
    limit: float
    measured: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure keeps the limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True)
class Figure:
    """What one case gave. Times are the best of `runs`, medians beside them; None where a case has no such figure."""

    case: str
    what: str
    runs: int
    process_s: float
    process_median_s: float
    cpu_s: float  # user and system
    peak_mb: float
    requests: int | None = None
    replicas: int | None = None
    rate_per_s: float | None = None  # offered
    of_capacity: float | None = None  # share of the measured capacity that is offered
    loop_s: float | None = None
    loop_median_s: float | None = None
    steps: int | None = None
    tasks: int | None = None  # of a task graph
    output_tokens: int | None = None
    mean_batch: float | None = None
    saturated: bool | None = None
    note: str = ""
    targets: tuple[Target, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON, with the rates that follow."""
        document = asdict(self)
        document["targets"] = [{**asdict(target), "met": target.met} for target in self.targets]
        if self.loop_s is not None:
            for name, count in (("steps", self.steps), ("requests", self.requests), ("tokens", self.output_tokens)):
                document[f"{name}_per_loop_s"] = (count or 0) / self.loop_s
                document[f"{name}_per_cpu_s"] = (count or 0) / self.cpu_s
        return document


def _figure(case: str, what: str, done: list[Simulation], **more: object) -> Figure:
    """The figure of equal runs of one scenario."""
    summary = done[0].summary
    walls, loops = [one.process.wall_s for one in done], [one.loop_s for one in done]
    return Figure(
        case,
        what,
        len(done),
        min(walls),
        statistics.median(walls),
        min(one.process.cpu_s for one in done),
        max(one.process.peak_mb for one in done),
        requests=summary["requests"]["total"],
        replicas=summary["replicas"],
        rate_per_s=summary["offered_requests_per_s"],
        loop_s=min(loops),
        loop_median_s=statistics.median(loops),
        steps=summary["batch"]["steps"],
        output_tokens=summary["tokens"]["output"],
        mean_batch=summary["batch"]["mean_requests"],
        saturated=summary["stability"] == "saturated",
        **more,  # type: ignore[arg-type]  # fields of Figure
    )


def _scenario(base: dict[str, Any], requests: int, rate_per_s: float, lengths: dict[str, Any]) -> dict[str, Any]:
    arrival = {"process": "poisson", "rate_per_s": rate_per_s}
    return {"name": "benchmark", **base, "workload": {**lengths, "num_requests": requests, "arrival": arrival}}


def _trace(scratch: Path, requests: int, rate_per_s: float) -> tuple[Path, str]:
    path = scratch / f"trace-{requests}.csv"
    made = run_process([sys.executable, str(_HERE / "traffic.py"), str(requests), str(rate_per_s), str(path)])
    return path, f"lengths: {made.output.strip()}"


def common(scratch: Path, *, quick: bool) -> Iterator[Figure]:
    """10,000 requests at 4 per second on one GPU: the workload on which the peers were measured."""
    requests = 200 if quick else 10_000
    trace, origin = _trace(scratch, requests, 4)
    done = simulate({"name": "common", **_LLAMA}, scratch, trace=trace, runs=1 if quick else 5)
    figure = _figure("common", "Llama-3.1-8B, 1 GPU, trace file", done, note=origin)
    loop_s, steps = min(one.loop_s for one in done), int(done[0].summary["batch"]["steps"])
    counter, heap = counter_loop_s(steps), heap_loop_s(requests)
    note = f"{origin}; loop {loop_s / counter:.1f} x counter loop, {loop_s / heap:.0f} x heap loop"
    targets = (Target("loop, s", 0.25, loop_s), Target("process, s", 0.9, figure.process_s))
    yield replace(figure, note=note, targets=targets)
    for what, seconds, count in (("counter loop", counter, steps), ("heap loop", heap, None)):
        yield Figure(
            "yardstick", what, 1, seconds, seconds, seconds, 0, requests=requests, loop_s=seconds, steps=count,
            loop_median_s=seconds, note="plain Python, this process",
        )  # fmt: skip


def replicas16(scratch: Path, *, quick: bool) -> Iterator[Figure]:
    """100,000 requests at 64 per second on 16 replicas."""
    requests, replicas = (400, 4) if quick else (100_000, 16)
    trace, origin = _trace(scratch, requests, 4 * replicas)
    for router in ("round_robin", "least_outstanding"):
        scenario = {"name": "replicas", **_LLAMA, "scheduler": {"router": router}}
        scenario["cluster"] = {**_LLAMA["cluster"], "replicas": replicas}  # type: ignore[dict-item]
        done = simulate(scenario, scratch, trace=trace, runs=1 if quick else 2)
        figure = _figure("replicas16", f"{router}, trace file", done, note=origin)
        targets = (Target("process, s", 3, figure.process_s), Target("peak, MB", 250, figure.peak_mb))
        yield replace(figure, targets=targets)


def load(scratch: Path, *, quick: bool) -> Iterator[Figure]:
    """Light load, near saturation and saturated. Capacity is what the saturated run finishes per second."""
    requests = 300 if quick else 40_000
    for name, base, lengths, overload_per_s, held in (
        ("Mixtral, 4 Duplex", _MIXTRAL, _AZURE, 100.0, True),
        ("Mixtral, 4 Duplex, 1024 in / 1024 out", _MIXTRAL, _LONG, 40.0, True),
        ("Mixtral, 6 AIMC chips", _MIXTRAL_AIMC, _AZURE, 80.0, False),
        ("Llama-3.1-8B, 1 GPU", _LLAMA, _AZURE, 45.0, False),
    ):
        scenario = _scenario(base, requests, overload_per_s, lengths)
        # Queue and batch fill in the first quarter; the few requests of a quick run end only after the last arrival.
        warmup_s = 0.0 if quick else 0.25 * requests / overload_per_s
        (over,) = simulate({**scenario, "run": {"warmup_s": warmup_s}}, scratch)
        capacity = over.summary["throughput"]["requests_per_s"]
        for load_name, share in (("light", 0.1), ("near saturation", 0.9), ("saturated", None)):
            if share is None:
                done, share_of = [over], overload_per_s / capacity
            else:
                done = simulate(_scenario(base, requests, share * capacity, lengths), scratch)
                share_of = share
            figure = _figure("load", f"{name}, {load_name}", done, of_capacity=share_of)
            steps_per_s = done[0].summary["simulator"]["steps_per_s"]
            targets = (Target("steps/s", 200_000, steps_per_s, at_least=True),) if share == 0.9 and held else ()
            yield replace(figure, targets=targets)


def growth(scratch: Path, *, quick: bool) -> Iterator[Figure]:
    """Requests from 1e3 to 1e6 on one GPU, and replicas from 1 to 64, 4 requests per second each."""
    before: Figure | None = None
    for requests in (100, 1000) if quick else (1000, 10_000, 100_000, 1_000_000):
        figure = _figure("growth", "requests", simulate(_scenario(_LLAMA, requests, 4, _AZURE), scratch))
        if before is not None and requests >= 1_000_000:
            assert before.requests is not None
            per_request = (figure.peak_mb - before.peak_mb) * 1e6 / (requests - before.requests)
            targets = (Target("process, s", 30, figure.process_s), Target("bytes per request", 200, per_request))
            figure = replace(
                figure, targets=targets, note=f"{per_request:.0f} bytes per request more than the row above"
            )
        yield figure
        before = figure
    for router in ("round_robin", "least_outstanding"):
        for replicas in (1, 4) if quick else (1, 4, 16, 64):
            scenario = _scenario(_LLAMA, (50 if quick else 2000) * replicas, 4 * replicas, _AZURE)
            scenario["cluster"] = {**scenario["cluster"], "replicas": replicas}
            scenario["scheduler"] = {"router": router}
            yield _figure("growth", f"replicas, {router}", simulate(scenario, scratch))


def start(scratch: Path, *, quick: bool) -> Iterator[Figure]:
    """What one waits for before anything is simulated."""
    runs = 1 if quick else 5
    helps = [run_process([PIMSERVE, "--help"]) for _ in range(runs)]
    walls = [one.wall_s for one in helps]
    yield Figure(
        "start", "pimserve --help", runs, min(walls), statistics.median(walls), min(one.cpu_s for one in helps),
        max(one.peak_mb for one in helps), targets=(Target("process, s", 0.3, min(walls)),),
    )  # fmt: skip
    for name, base in (("Llama-3.1-8B, 1 GPU", _LLAMA), ("Mixtral, 4 Duplex", _MIXTRAL)):
        done = simulate(_scenario(base, 10, 4, _AZURE), scratch, runs=runs)
        figure = _figure("start", f"pimserve run, {name}", done)
        yield replace(figure, targets=(Target("process, s", 1, figure.process_s),))


def reference(_: Path, *, quick: bool) -> Iterator[Figure]:
    """The naive reference engine of the tests beside ours, on the same requests."""
    requests = 20 if quick else 1000
    made = run_process([sys.executable, str(_HERE / "reference.py"), str(requests)])
    measured = json.loads(made.output)
    for what in ("engine", "reference"):
        seconds = measured[f"{what}_s"]
        yield Figure(
            "reference", f"{what}, Llama-3.1-8B, 1 GPU", 1, made.wall_s, made.wall_s, made.cpu_s, made.peak_mb,
            requests=requests, replicas=1, loop_s=seconds, loop_median_s=seconds, steps=int(measured["steps"]),
            note=f"both in one process; {seconds / measured['engine_s']:.0f} x the engine's time",
        )  # fmt: skip


_MOONCAKE = "mooncake_fast25_conversation_0000-1200s.jsonl.gz"
# DynoSim 1.4.2 on this slice, with its own KV router, on another machine with 2 cores.
_DYNOSIM = {"loop, s": 1.3, "process, s": 4.1, "peak, MB": 282}


def prefixes(scratch: Path, *, quick: bool) -> Iterator[Figure]:
    """The Mooncake conversation slice on 4 replicas with prefix caches; nothing where the slice is not at hand."""
    real = Path(os.environ.get("PIMSERVE_TRACES") or _HERE.parents[1] / "shared" / "traces") / _MOONCAKE
    if not real.exists():
        print(f"no {real.name} in {real.parent}: left out", file=sys.stderr)
        return
    trace = {"format": "mooncake", "path": str(real), **({"max_requests": 100} if quick else {})}
    for router, block_size in ((None, 16), ("least_tokens", 512), ("prefix_affinity", 512), ("llm_d", 512)):
        scheduler = {"router": router or "least_tokens", "block_size": block_size}
        scenario = {
            "name": "prefixes",
            "model": "llama-3.1-8b",
            "cluster": {"device": "h100", "devices_per_node": 4, "replicas": 4},
            "scheduler": {**scheduler, "enable_prefix_caching": router is not None},
            "workload": {"trace": trace},
        }
        done = simulate(scenario, scratch, runs=1 if quick else 5)
        what = f"Mooncake slice, {'no cache' if router is None else f'{router}, blocks of {block_size}'}"
        figure = _figure("prefixes", what, done)
        if router is not None:
            measured = {"loop, s": figure.loop_s, "process, s": figure.process_s, "peak, MB": figure.peak_mb}
            targets = tuple(Target(name, limit, measured[name] or 0) for name, limit in _DYNOSIM.items())
            ratio = done[0].summary["prefix_cache"]["hit_ratio"]
            figure = replace(figure, targets=targets, note=f"hit ratio {ratio:.4f}")
        yield figure


_MIXED_STEPS_PER_S = {"light": 100_000, "near saturation": 40_000}


def mixed(_: Path, *, quick: bool) -> Iterator[Figure]:
    """Experts on devices of their own, beside a plain replica."""
    made = run_process([sys.executable, str(_HERE / "mixed.py"), *(("200", "1") if quick else ("20000", "3"))])
    plain: dict[str, Any] = {}
    for measured in json.loads(made.output):
        loop_s, cpu_s, steps = min(measured["loop_s"]), min(measured["cpu_s"]), int(measured["steps"])
        if measured["plain"]:
            plain = measured
        slower = cpu_s / steps * plain["steps"] / min(plain["cpu_s"])
        note = f"{steps / cpu_s:,.0f} steps per CPU s, {slower:.1f} x the CPU time of a plain step"
        limit = 0 if measured["plain"] else _MIXED_STEPS_PER_S[measured["load"]]
        yield Figure(
            "mixed", measured["what"], len(measured["loop_s"]), made.wall_s, made.wall_s, cpu_s, made.peak_mb,
            requests=measured["requests"], replicas=1, rate_per_s=measured["rate_per_s"],
            of_capacity=measured["of_capacity"], loop_s=loop_s, loop_median_s=statistics.median(measured["loop_s"]),
            steps=steps, mean_batch=measured["mean_batch"],
            note=f"all in one process; {measured['steps_per_span']:.1f} steps a span; {note}",
            targets=(Target("steps/s", limit, steps / loop_s, at_least=True),) if limit else (),
        )  # fmt: skip


# CPU seconds of tracing and scheduling in the reference simulator, 3D-SiM, on the same graphs; another 2-core machine.
_THEIRS_S = {
    "paper_scale": {1: 138.0},  # 324 s of wall-clock time
    "layers": {2: 0.25, 4: 0.36, 8: 0.71, 16: 1.40, 32: 2.97},
    "sequences": {1: 0.36, 2: 0.53, 4: 1.00, 8: 1.82, 16: 3.67, 32: 8.27, 64: 16.3},
    "prompt": {8: 0.53, 16: 1.52, 32: 2.66, 64: 6.21, 128: 17.7},
}


def aimc(_: Path, *, quick: bool) -> Iterator[Figure]:
    """The event-driven model of 3D AIMC: the case at the scale of the paper, and growth with the task graph."""
    for factor, theirs in _THEIRS_S.items():
        done: list[Figure] = []
        for value in list(theirs)[:2] if quick else theirs:
            made = run_process([sys.executable, str(_HERE / "aimc.py"), factor, str(value)])
            measured = json.loads(made.output)
            seconds, tasks = measured["seconds"], int(measured["tasks"])
            what = "51.8 G parameters, 8 tokens" if factor == "paper_scale" else f"{factor} {value}"
            figure = Figure(
                "aimc", what, measured["runs"], made.wall_s, made.wall_s, made.cpu_s, made.peak_mb, loop_s=seconds,
                loop_median_s=measured["median_s"], tasks=tasks,
                note=f"{tasks:,} tasks, {1e6 * seconds / tasks:.1f} us each; 3D-SiM {theirs[value]:.3g} s CPU",
            )  # fmt: skip
            if factor == "paper_scale":
                figure = replace(figure, targets=(Target("loop, s", 5, seconds),))
            done.append(figure)
        if len(done) > 1:
            sizes = [figure.tasks or 0 for figure in done]
            growth = _exponent(sizes, [figure.loop_s or 0 for figure in done])
            target = Target("exponent of tasks, n log n", _exponent(sizes, [n * math.log(n) for n in sizes]), growth)
            done[-1] = replace(done[-1], targets=(target,), note=f"{done[-1].note}; seconds grow as tasks^{growth:.2f}")
        yield from done


def _exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of a straight line through the logarithms."""
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(v) for v in values]).slope


CASES: dict[str, Callable[..., Iterator[Figure]]] = {
    case.__name__: case for case in (start, common, replicas16, load, growth, prefixes, mixed, reference, aimc)
}
