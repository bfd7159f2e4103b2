"""One seed: a run whose parts are stopped, killed and cut off, and what must hold all the same."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pimserve.cluster.distributed.run_on import PROCESSES, run_on
from pimserve.cluster.distributed.run_spread import Spread
from pimserve.cluster.run.verify_run import verify_results
from pimserve.errors import PimserveError
from tests.simulated import active
from tests.simulated.loop import Killed, Loop, StuckError
from tests.simulated.nemesis import Nemesis
from tests.simulated.network import Network
from tests.simulated.scenarios import Case, figures, same_files
from tests.simulated.world import World

DISK = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
_MOST_RUNS = 40
_AGAIN_S = 2.0  # until the command is given again


@dataclass(frozen=True)
class Outcome:
    """What came of a seed.

    Attributes:
        findings: what must not be; none: it passed.
        digest: of all that happened.
        done: how often each kind of fault was made.
        runs: of the command, until it ended well.
    """

    seed: int
    what: str
    findings: tuple[str, ...]
    digest: int
    events: int
    done: dict[str, int]
    runs: int
    errors: tuple[str, ...]


def spread_for(rng: random.Random, replicas: int) -> Spread:
    """How the run of a seed is spread."""
    devices = rng.choice([None, "planned", "lockstep"])
    shards = 1 if devices == "lockstep" else rng.choice([1, 2])
    return Spread(min(shards, replicas), devices, rng.choice([1, None]) if devices else None)  # type: ignore[arg-type]


def attempt(seed: int, cases: list[Case], trace: Callable[[str], None] | None = None) -> Outcome:
    """Try a seed."""
    rng = random.Random(seed)
    case = rng.choice(cases)
    spread = spread_for(rng, case.prepared.replicas)
    loop = Loop(rng.getrandbits(32), rng.choice([1e-4, 2e-3, 2e-2]), trace)
    network = Network(rng.choice([5e-4, 5e-3, 5e-2]))
    scratch = Path(tempfile.mkdtemp(dir=DISK))
    root = scratch / "disk"  # a name that is the same each time
    root.mkdir()
    there = World(loop, network, root)
    active.enter(there)
    nemesis = Nemesis(there, random.Random(rng.getrandbits(32)))
    errors: list[str] = []
    runs = 0
    watch = _Watch(loop)
    logging.getLogger("pimserve").addHandler(watch)
    try:
        results = root / "out"
        while runs < _MOST_RUNS:
            runs += 1
            ended = _Command(there, case, spread, results, root / "kept")
            loop.run(lambda ended=ended: ended.process.dead)  # type: ignore[misc]
            if ended.error:
                errors.append(ended.error)
            if ended.process.code == 0:
                break
            again_s = loop.now_s + _AGAIN_S
            loop.after(_AGAIN_S, lambda: None)
            loop.run(lambda again_s=again_s: loop.now_s >= again_s)  # type: ignore[misc]
        else:
            loop.finding(f"has not ended well after {runs} runs: {errors[-1:]}")
        nemesis.rest()
        loop.run(lambda: not there.alive())
        if not loop.findings:
            _check(loop, case, results, root)
    except StuckError as error:
        loop.finding(f"stuck: {error}\n{_where(there)}")
    finally:
        there.clear()
        active.leave()
        logging.getLogger("pimserve").removeHandler(watch)
        shutil.rmtree(scratch, ignore_errors=True)
    what = f"{case.name}, {spread.shards} shards, devices {spread.devices} {spread.devices_per_actor or ''}"
    return Outcome(seed, what, tuple(loop.findings), loop.digest, loop.events, nemesis.done, runs, tuple(errors))


class _Command:
    """`pimserve run --on processes --checkpoint`, in a process."""

    def __init__(self, there: World, case: Case, spread: Spread, out: Path, kept: Path) -> None:
        self.error = ""
        self._how = (case, spread, out, kept)
        self.process = there.launch("coordinator", self._main)

    def _main(self) -> int:
        case, spread, out, kept = self._how
        try:
            run_on(PROCESSES, case.prepared, out, spread=spread, checkpoints=kept)
        except (PimserveError, OSError) as error:
            if "exists already" in str(error):  # the run before was killed when all was done, but for saying so
                return 0
            self.error = f"{type(error).__name__}: {error}"
            return 2
        except Killed:
            raise
        except Exception as error:  # noqa: BLE001 whatever it is, it must not be
            self.error = f"{type(error).__name__}: {error}"
            active.world().loop.finding(f"a traceback: {traceback.format_exc()}")
            return 70
        return 0


def _check(loop: Loop, case: Case, results: Path, root: Path) -> None:
    from pimserve.cluster.run.read_summary import read_summary  # noqa: PLC0415

    there = figures(read_summary(results))
    if there != case.expected:
        differ = [key for key in case.expected if there.get(key) != case.expected[key]]
        loop.finding(f"other figures: {differ}")
    files = same_files(results)
    loop.findings += [f"other bits in {name}" for name, content in case.files.items() if files[name] != content]
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if results not in path.parents)
    if left != ["out"]:
        loop.finding(f"left behind: {left}")
    loop.findings += [f"{wrong.file}: {wrong.message}" for wrong in verify_results(results).findings]


def _where(there: World) -> str:
    """Where all tasks wait."""
    lines = []
    for process in there.alive():
        for task in process.tasks:
            frames = traceback.extract_stack(task.greenlet.gr_frame)[-6:] if task.greenlet.gr_frame else []
            lines.append(f"{process.name}{' (stopped)' if process.stopped else ''}, {task.name}: " + " > ".join(
                f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames))  # fmt: skip
    return "\n".join(lines)


class _Watch(logging.Handler):
    """Errors that the program writes into its log, but for one line about the disk."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(logging.ERROR)
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            text = "".join(traceback.format_exception(record.exc_info[1]))
            self._loop.finding(f"an error in the log: {record.getMessage()}\n{text}")
