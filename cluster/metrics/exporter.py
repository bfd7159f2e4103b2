"""An exporter: a process that exposes a run of another, so that who is scraped is not the engine.

`python -m pimserve.cluster.metrics.exporter`. It takes the options and the run's layout from standard input, and says
on standard output where it listens, or why it does not. Then each line that it writes asks for the values as they are,
which come as their length (8 bytes) and themselves. It ends with its standard input, so with the run.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from pimserve.cluster.base.rpc.security import TlsFiles
from pimserve.cluster.metrics.endpoint import EndpointOptions, exposing
from pimserve.cluster.metrics.layout import Layout
from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.errors import InputError

LOG = logging.getLogger("pimserve.metrics")
_PATIENCE_S = 2.0  # with an exporter that is to end
_COMMAND = (sys.executable, "-m", "pimserve.cluster.metrics.exporter")


@contextmanager
def exporting(options: EndpointOptions, latest: Callable[[], RunMetrics]) -> Iterator[str]:
    """Expose a run while the block runs, from another process; yields the address.

    Args:
        options: where, and to whom.
        latest: gives the metrics of the run, always of one layout; called from another thread, once for each scrape.

    Raises:
        InputError: an option is not acceptable, or the address is in use.
    """
    # In a session of its own: an interrupt is for the run, which may linger.
    with subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        closing = threading.Event()
        answering = threading.Thread(
            target=_answer, args=(process.stdout, process.stdin, latest, closing), name="metrics", daemon=True
        )
        try:
            layout = latest().layout.to_json()
            _send(process.stdin, f"{json.dumps(asdict(options), default=str)}\n{layout}\n".encode())
            began = json.loads(process.stdout.readline() or '{"where": "--metrics", "message": "cannot be exposed"}')
            if "message" in began:
                raise InputError(began["where"], began["message"])
            answering.start()
            yield began["address"]
        finally:
            closing.set()
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:  # it was stopped, say
                process.kill()
            if answering.is_alive():
                answering.join()
            with suppress(BrokenPipeError):  # it ended before it had read all
                process.stdin.close()


def _answer(asked: IO[bytes], answers: IO[bytes], latest: Callable[[], RunMetrics], closing: threading.Event) -> None:
    """Send the values whenever they are asked for, until the exporter ends."""
    for _ in asked:
        values = latest().pack()
        _send(answers, len(values).to_bytes(8, "big") + values)
    if not closing.is_set():
        LOG.warning("metrics are no longer exposed: the process that did it has ended")


def _send(target: IO[bytes], data: bytes) -> None:
    """Send what an exporter that has ended will not miss."""
    with suppress(BrokenPipeError):
        target.write(data)
        target.flush()


def main() -> None:
    """Entry point of the process."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    document = json.loads(source.readline())
    options = EndpointOptions(**document)
    options = replace(options, tls=TlsFiles(**{name: path and Path(path) for name, path in document["tls"].items()}))
    layout = Layout.from_json(source.readline().decode())
    values: SimpleQueue[bytes] = SimpleQueue()
    one_at_a_time = threading.Lock()

    def say(text: str) -> None:
        target.write(text.encode() + b"\n")
        target.flush()

    def runs() -> list[RunMetrics]:
        with one_at_a_time:
            say("")
            return [RunMetrics.unpack(layout, values.get())]

    try:
        with exposing(options, runs) as address:
            say(json.dumps({"address": address}))
            while size := source.read(8):
                values.put(source.read(int.from_bytes(size, "big")))
    except InputError as error:
        say(json.dumps({"where": error.where, "message": error.message}))


if __name__ == "__main__":
    main()
