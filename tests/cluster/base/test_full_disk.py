"""What does not fit the disk is an error that names the file, and leaves nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMITED = """
import resource, signal, sys
from pimserve.cluster.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main()
"""


def limited(most_bytes: int, folder: Path, *command: str) -> str:
    """The standard error of a command whose files may have so many bytes."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(most_bytes), *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2
    return done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("most_bytes", "requests", "options", "message"),
    [
        (100_000, 5000, [], "out: File too large"),
        (100_000, 5000, ["--checkpoint", "kept"], "out: File too large"),
        (100_000, 5000, ["--set", "output.steps=false"], "out: cannot be written whole: 5000 requested and"),
        # So few that it ends before it is time to write a checkpoint, which would not fit either.
        (1000, 100, ["--set", "output.steps=false", "--checkpoint", "kept"], "out: cannot be written whole"),
    ],
)
def test_runs_name_the_folder(most_bytes: int, requests: int, options: list[str], message: str, tmp_path: Path) -> None:
    command = ["run", "--quiet", "--set", f"workload.num_requests={requests}", "--out", "out", *options]
    assert f"error: {message}" in limited(most_bytes, tmp_path, *command)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"kept"}


@pytest.mark.e2e
def test_sweeps_name_the_file(tmp_path: Path) -> None:
    command = ["sweep", "--grid", "cluster.replicas=1,2", "--set", "workload.num_requests=20", "--out", "sweep"]
    assert "error: sweep/sweep.csv: File too large" in limited(200, tmp_path, *command)
