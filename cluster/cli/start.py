"""Where the command `pimserve` begins: until its modules are there, an interrupt ends it without a word.

A run that keeps its state gets a parent first."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Entry point of `pimserve`."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else whoever started us has it ignored
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pimserve.cluster.cli.parent import checkpoints_of, go_on_when_killed  # noqa: PLC0415

    if (checkpoints := checkpoints_of(sys.argv[1:])) is not None:
        go_on_when_killed(checkpoints)
    from pimserve.cluster.cli.main import main as run  # noqa: PLC0415 a fifth of a second

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
