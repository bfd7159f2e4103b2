"""Runs that are interrupted, killed or out of disk, and runs into a used name, as somebody at a terminal meets them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import pimserve

PIMSERVE = Path(sys.executable).parent / "pimserve"
LONG = ["run", "--set", "workload.num_requests=2000000"]
SHORT = ["run", "--set", "workload.num_requests=50", "--set", "name=x"]

pytestmark = pytest.mark.e2e


def listens() -> None:
    """Take Ctrl-C, which shells let what they run in the background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(folder: Path, *more: str) -> subprocess.Popen[str]:
    """A long run that has begun to write."""
    process = subprocess.Popen(
        [str(PIMSERVE), *LONG, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listens,  # noqa: PLW1509 it only sets a handler
    )
    patience = time.monotonic() + 60
    while not list(folder.glob("results/.*/*")) + list(folder.glob("kept/steps.npy")) and time.monotonic() < patience:
        time.sleep(0.02)
    return process


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return pimserve(folder, *arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "interrupted, and nothing is kept; with --checkpoint DIR the same command goes on where a run was\n"),
        (["--checkpoint", "kept"], "with --checkpoint kept, goes on from the last checkpoint\n"),
    ],
)
def test_an_interrupt_says_how_to_go_on(options: list[str], message: str, tmp_path: Path) -> None:
    with started(tmp_path, *options) as process:
        process.send_signal(signal.SIGINT)
        shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown == ""
    assert errors.endswith(message)
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == options[1:]


def test_an_interrupt_that_a_library_turns_into_an_error_of_its_own_is_one_still(tmp_path: Path) -> None:
    turned = (
        "import os, signal\nfrom pimserve.cluster.cli.main import main\n"
        "from pimserve.cluster.distributed import run_on as command\n"
        "def run_on(*_, **__):\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n    except BaseException: pass\n"
        "    raise RuntimeError('import failed')\n"
        "command.run_on = run_on\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", turned, *SHORT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=listens,
    )
    assert done.returncode == 130
    assert "interrupted, and nothing is kept" in done.stderr
    assert "import failed" not in done.stderr


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.3])
def test_three_interrupts_show_no_traceback(pause_s: float, tmp_path: Path) -> None:
    with started(tmp_path) as process:
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(pause_s)
        shown, errors = process.communicate(timeout=60)
    assert process.returncode in {130, -signal.SIGINT}  # the interpreter takes its handlers away at its very end
    assert shown == ""
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert len(errors.splitlines()) <= 2


def test_a_killed_run_leaves_nothing_that_others_trip_over(tmp_path: Path) -> None:
    assert command(tmp_path, *SHORT).returncode == 0
    with started(tmp_path) as process:
        process.kill()
    assert command(tmp_path, *SHORT).returncode == 0
    seen = [str(path) for path in sorted(tmp_path.glob("results/[!.]*"))]  # as a shell does
    assert [Path(path).name for path in seen] == ["x", "x-2"]
    done = command(tmp_path, "compare", *seen)
    assert done.returncode == 0, done.stderr


def test_a_run_into_a_used_name_says_so_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    first = command(tmp_path, *SHORT)
    assert "note:" not in first.stderr
    second = command(tmp_path, *SHORT)
    start, end = (line for line in second.stderr.splitlines() if line.startswith("note:"))
    assert start.startswith("note: results/x is of an earlier run (20")
    assert start.endswith("this one will be in results/x-2")
    assert end.startswith("note: results/x is of an earlier run (20")
    shown = command(tmp_path, "compare", "x", "x-2").stdout
    assert shown.count(" UTC") >= 2
    assert "newer" not in shown  # the newer one is there
    assert command(tmp_path, *SHORT, "--set", "name=y", "--out", "y").returncode == 0
    assert "note: results/x is of 20" in command(tmp_path, "compare", "x", "y").stdout


@pytest.mark.skipif(not hasattr(os, "RTLD_NOW"), reason="needs limits of file sizes")
def test_a_full_disk_prints_the_table_and_then_the_error(tmp_path: Path) -> None:
    limited = (
        "import resource, signal\nfrom pimserve.cluster.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\nmain()"
    )
    arguments = ["run", "--set", "workload.num_requests=5000", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2
    assert "TTFT" in done.stdout
    assert "results in" not in done.stdout
    assert done.stderr == "error: out: File too large\n"
    assert not list(tmp_path.iterdir())
