"""Ctrl-C while the command line is still being imported."""

import signal
import subprocess
import sys

import pytest

# Stands in for modules that take long: the interrupt comes while they are imported.
SLOW_IMPORT = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            print("importing", flush=True)
            time.sleep(30)
sys.meta_path.insert(0, Slow())
from pimserve.cluster.cli.start import main
main()
"""


def listens() -> None:
    """Take Ctrl-C, which shells let what they run in the background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("ignored", [False, True])
def test_an_early_interrupt_is_quiet(ignored: bool) -> None:
    code = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{SLOW_IMPORT}" if ignored else SLOW_IMPORT
    code = code.replace("sleep(30)", "sleep(0.5)") if ignored else code
    with subprocess.Popen(
        [sys.executable, "-c", code, "--version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listens,  # noqa: PLW1509 it only sets a handler
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=20)
        finally:
            process.kill()  # or it would be collected, still running, in the middle of some later test
    assert errors == ""
    if ignored:
        assert process.returncode == 0
        assert output.startswith("pimserve ")
    else:
        assert process.returncode == -signal.SIGINT
        assert output == ""
