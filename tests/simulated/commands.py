"""The command `pimserve run --on processes --checkpoint`, given again until it ends well."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from contextlib import ExitStack

from pimserve.cluster.distributed.run_on import run_on
from pimserve.cluster.distributed.run_spread import Spread
from pimserve.errors import PimserveError
from tests.simulated.loop import Killed
from tests.simulated.scenarios import Case, differences
from tests.simulated.world import World

_MOST_RUNS = 40
_AGAIN_S = 2.0


def spread_for(rng: random.Random, replicas: int) -> Spread:
    """How a run is spread."""
    devices = rng.choice([None, "planned", "lockstep"])
    shards = 1 if devices == "lockstep" else rng.choice([1, 2])
    return Spread(min(shards, replicas), devices, rng.choice([1, None]) if devices else None)  # type: ignore[arg-type]


class Commands:
    """Commands one after the other, in a process each.

    Attributes:
        what: is run, in words.
        runs: of it so far.
        errors: in which it ended.
    """

    within_events = 500

    def __init__(self, there: World, case: Case, rng: random.Random) -> None:
        self._there = there
        self._case = case
        self._spread = spread = spread_for(rng, case.prepared.replicas)
        self.what = (
            f"{case.name}: {spread.shards} shards, devices {spread.devices}, {spread.devices_per_actor} an actor"
        )
        self._results = there.root / "out"
        self.runs = 0
        self.errors: list[str] = []

    def play(self, rest: Callable[[], None]) -> None:
        """Give the command until it ends well; `rest` then ends the faults."""
        loop = self._there.loop
        while self.runs < _MOST_RUNS:
            self.runs += 1
            process = self._there.launch("coordinator", self._main)
            loop.run(lambda process=process: process.dead)  # type: ignore[misc]
            if process.code == 0:
                break
            again_s = loop.now_s + _AGAIN_S
            loop.after(_AGAIN_S, lambda: None)
            loop.run(lambda again_s=again_s: loop.now_s >= again_s)  # type: ignore[misc]
        else:
            loop.finding(f"has not ended well after {self.runs} runs: {self.errors[-1:]}")
        rest()

    def _main(self) -> int:
        try:
            with ExitStack() as until:
                kept = self._there.root / "kept"
                how = {"spread": self._spread, "checkpoints": kept, "until": until}
                run_on("processes", self._case.prepared, self._results, **how)
        except (PimserveError, OSError) as error:
            if "exists already" in str(error):  # one was killed when all was done
                return 0
            self.errors.append(f"{type(error).__name__}: {error}")
            return 2
        except Killed:
            raise
        except Exception as error:  # noqa: BLE001 whatever it is, it must not be
            self.errors.append(f"{type(error).__name__}: {error}")
            self._there.loop.finding(f"a traceback: {traceback.format_exc()}")
            return 70
        return 0

    def check(self) -> None:
        """What must hold in the end."""
        loop, root = self._there.loop, self._there.root
        loop.findings += differences(self._case, self._results)
        left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if self._results not in path.parents)
        if left != ["out"]:
            loop.finding(f"left behind: {left}")
