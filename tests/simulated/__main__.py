"""Seeded fault simulation of the runtime.

    python -m tests.simulated --seeds 2000            # seeds 0 to 1999, on all cores
    python -m tests.simulated --seed 1234 --trace     # one again, with all that happens

Run from the root of the repository. A seed always does the same, on any machine, with the same sources.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulated.scenarios import Case
    from tests.simulated.trial import Outcome

_cases: list[Case] = []
_only: list[str | None] = [None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulated", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=300, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument(
        "--only", choices=["command", "served"], help="runs of this kind; seeds have another meaning then"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of names is a part of what happens
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulated", *(arguments or sys.argv[1:])],
                  {**os.environ, "PYTHONHASHSEED": "0"})  # fmt: skip
    _prepare()
    _only[:] = [asked.only]
    if asked.seed is not None:
        from tests.simulated.trial import attempt  # noqa: PLC0415

        outcome = attempt(asked.seed, _cases, print if asked.trace else None, only=asked.only)
        _show(outcome)
        print("failed" if outcome.findings else "passed")
        return 1 if outcome.findings else 0
    return _many(range(asked.first, asked.first + asked.seeds), asked.processes)


def _prepare() -> None:
    """All that the seeds share, made once."""
    from tests.simulated import names, scenarios  # noqa: PLC0415

    _cases[:] = scenarios.cases()
    names.install()
    from tests.simulated import trial  # noqa: F401, PLC0415 loaded before the processes divide

    gc.collect()
    gc.freeze()


def _many(seeds: range, processes: int) -> int:
    began = time.monotonic()
    done: Counter[str] = Counter()
    failed, runs, refused = [], 0, 0
    with contextlib.closing(_outcomes(seeds, processes)) as outcomes:
        for outcome in outcomes:
            done.update(outcome.done)
            runs += outcome.runs
            refused += len(outcome.errors)
            if outcome.findings:
                failed.append(outcome.seed)
                _show(outcome)
    wall_s = time.monotonic() - began
    print(f"{len(seeds)} seeds in {wall_s:.1f} s ({len(seeds) / wall_s:.1f} a second), {len(failed)} failed")
    print(f"faults: {', '.join(f'{count} x {kind}' for kind, count in sorted(done.items()))}")
    print(f"{runs} runs of the command, {refused} of them ended in an error that the next went on from")
    return 1 if failed else 0


def _outcomes(seeds: range, processes: int) -> Iterator[Outcome]:
    if processes == 1:
        yield from map(_one, seeds)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap_unordered(_one, seeds, chunksize=5)


def _one(seed: int) -> Outcome:
    from tests.simulated.trial import attempt  # noqa: PLC0415

    return attempt(seed, _cases, only=_only[0])


def _show(outcome: Outcome) -> None:
    made = ", ".join(f"{count} x {kind}" for kind, count in sorted(outcome.done.items())) or "none"
    print(f"seed {outcome.seed}: {outcome.what}; faults: {made}; {outcome.runs} runs, {outcome.events} events, "
          f"digest {outcome.digest:08x}")  # fmt: skip
    for text in (*outcome.errors, *outcome.findings):
        print("    " + text.replace("\n", "\n    "))
    if outcome.findings:
        only = f" --only {_only[0]}" if _only[0] else ""
        print(f"    again: python -m tests.simulated --seed {outcome.seed}{only} --trace", flush=True)


if __name__ == "__main__":
    sys.exit(main())
