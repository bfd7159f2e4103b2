"""`pimserve` called in this process, for tests that a process of its own would prove nothing more."""

import io
import os
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from unittest import mock

from pimserve.cluster.cli.main import main

UNWANTED = ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "PIMSERVE_DEBUG", "PIMSERVE_TOKEN", "PIMSERVE_SERVER")


def pimserve(folder: Path, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder: exit code and output as of a process without a terminal."""
    command = ["pimserve", *map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with chdir(folder), mock.patch.dict(os.environ), mock.patch.multiple(sys, argv=command, stdout=out, stderr=err):
        for name in UNWANTED:
            os.environ.pop(name, None)
        os.environ.update(env)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    shown, errors = (stream.buffer.getvalue().decode() for stream in (out, err) if stream.flush() is None)
    assert "Traceback" not in errors, errors
    return subprocess.CompletedProcess(command, code, shown, errors)
