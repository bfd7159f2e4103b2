"""One seed: a world in which something runs, faults in it, and what must hold all the same."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.simulated import active
from tests.simulated.commands import Commands
from tests.simulated.loop import Loop, StuckError
from tests.simulated.nemesis import Nemesis
from tests.simulated.network import Network
from tests.simulated.scenarios import Case
from tests.simulated.served import Served
from tests.simulated.world import World

DISK = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
_SERVED_SHARE = 1 / 3
_SLICES_S = (1e-4, 2e-3, 2e-2)  # of a turn of a task: a quick machine, and slow ones
_DELAYS_S = (5e-4, 5e-3, 5e-2)  # of a message


@dataclass(frozen=True)
class Outcome:
    """What came of a seed.

    Attributes:
        what: ran.
        findings: what must not be; none: it passed.
        digest: of all that happened.
        done: how often each kind of fault was made.
        runs: of the command, or launches of workers.
        errors: in which they ended, and from which the next went on.
    """

    seed: int
    what: str
    findings: tuple[str, ...]
    digest: int
    events: int
    done: dict[str, int]
    runs: int
    errors: tuple[str, ...]


def attempt(
    seed: int, cases: list[Case], trace: Callable[[str], None] | None = None, *, only: str | None = None
) -> Outcome:
    """Try a seed; `only` commands, or runs that are served."""
    rng = random.Random(seed)
    loop = Loop(rng.getrandbits(32), rng.choice(_SLICES_S), trace)
    scratch = Path(tempfile.mkdtemp(dir=DISK))
    root = scratch / "disk"  # a name that is the same each time
    root.mkdir()
    there = World(loop, Network(rng.choice(_DELAYS_S)), root)
    active.enter(there)
    case = rng.choice(cases)
    kind = Served if rng.random() < {"served": 1.0, "command": 0.0}.get(only or "", _SERVED_SHARE) else Commands
    played = kind(there, case, random.Random(rng.getrandbits(32)))
    nemesis = Nemesis(there, random.Random(rng.getrandbits(32)), played.within_events)
    watch = _Watch(loop)
    logging.getLogger().addHandler(watch)
    try:
        played.play(nemesis.rest)
        loop.run(lambda: not there.alive())
        if not loop.findings:
            played.check()
    except StuckError as error:
        loop.finding(f"stuck: {error}\n{_where(there)}")
    finally:
        there.clear()
        active.leave()
        logging.getLogger().removeHandler(watch)
        shutil.rmtree(scratch, ignore_errors=True)
    done = dict(nemesis.done)
    return Outcome(
        seed, played.what, tuple(loop.findings), loop.digest, loop.events, done, played.runs, tuple(played.errors)
    )


def _where(there: World) -> str:
    """Where all tasks wait."""
    lines = []
    for process in there.alive():
        for task in process.tasks:
            frames = traceback.extract_stack(task.greenlet.gr_frame)[-6:] if task.greenlet.gr_frame else []
            places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
            lines.append(f"{process.name}{' (stopped)' if process.stopped else ''}, {task.name}: {places}")
    return "\n".join(lines)


class _Watch(logging.Handler):
    """Tracebacks that the program writes into its log."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(logging.ERROR)
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            text = "".join(traceback.format_exception(record.exc_info[1]))
            self._loop.finding(f"an error in the log: {record.getMessage()}\n{text}")
