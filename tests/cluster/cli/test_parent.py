"""The process of a run that is killed is followed by another, within limits; the one that stays behaves as they do."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pimserve.cluster.cli.parent import checkpoints_of
from tests.command import UNWANTED

PIMSERVE = Path(sys.executable).parent / "pimserve"
BEGIN = """
import os, signal, sys, time
from pathlib import Path
from pimserve.cluster.cli import parent
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
parent.go_on_when_killed(Path("kept"))
with Path("children").open("a") as file:
    file.write(f"{os.getpid()}\\n")
"""
KILLED = "note: the run's process was killed (SIGKILL); another goes on from the last checkpoint\n"


def children(folder: Path, least: int = 1) -> list[int]:
    file = folder / "children"
    deadline = time.monotonic() + 20
    while not file.exists() or file.read_text().count("\n") < least:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [int(line) for line in file.read_text().split()]


def until(holds: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()


def start(folder: Path, body: str, **how: object) -> subprocess.Popen[str]:
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    code = f"{BEGIN}{body}"
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, text=True, start_new_session=True, **how)


def done(folder: Path, body: str) -> tuple[int, str, str]:
    with start(folder, body) as process:
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["run", "x.yaml", "--checkpoint", "kept"], Path("kept")),
        (["run", "--checkpoint=kept", "-q"], Path("kept")),
        (["run", "x.yaml"], None),
        (["serve", "--checkpoint", "kept"], None),
        ([], None),
    ],
)
def test_runs_that_keep_their_state_have_a_parent(arguments: list[str], folder: Path | None) -> None:
    assert checkpoints_of(arguments) == folder


def test_a_killed_child_is_followed_by_another_which_ends_the_command(tmp_path: Path) -> None:
    body = "if parent.restarts < 2: os.kill(os.getpid(), signal.SIGKILL)\nprint(parent.restarts)\nsys.exit(3)"
    assert done(tmp_path, body) == (3, "2\n", 2 * KILLED)
    assert len(set(children(tmp_path))) == 3


def test_one_that_is_killed_again_and_again_ends_the_command(tmp_path: Path) -> None:
    code, _, err = done(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 128 + signal.SIGKILL
    assert err == 5 * KILLED + (
        "error: the run's process was killed 6 times within 60 s (SIGKILL, as by a system that is out of memory); the "
        "same command goes on from the last checkpoint\n"
    )


def test_so_does_one_that_comes_no_further_however_long_it_takes(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    rare = "parent._PATIENCE = parent.Patience(deaths=2, span_s=0.0)"
    further = "Path('kept/checkpoint').write_text('') if parent.restarts < 3 else None"
    body = f"{further}\ntime.sleep(0.05)\nos.kill(os.getpid(), signal.SIGKILL)"
    code = BEGIN.replace("parent.go_on", f"{rare}\nparent.go_on") + body
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stderr.count(KILLED) == 4  # the last that came further was the third
    assert "killed 3 times in a row" in ended.stderr


def test_one_that_is_done_is_not_followed(tmp_path: Path) -> None:
    code, _, err = done(tmp_path, "parent.done()\nos.kill(os.getpid(), signal.SIGKILL)")
    assert (code, err) == (-signal.SIGKILL, "")
    assert len(children(tmp_path)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_for_the_parent_is_for_the_child(number: signal.Signals, tmp_path: Path) -> None:
    with start(tmp_path, "time.sleep(30)") as process:
        [child] = children(tmp_path)
        process.send_signal(number)
        process.communicate(timeout=10)
    assert process.returncode == -number  # as that of a process without a parent
    assert gone(child)


def test_the_child_ends_when_the_parent_is_killed(tmp_path: Path) -> None:
    with start(tmp_path, "time.sleep(30)") as process:
        [child] = children(tmp_path)
        process.kill()
        process.communicate(timeout=10)
    assert gone(child)


def test_ctrl_c_and_ctrl_z_at_a_terminal_come_once(tmp_path: Path) -> None:
    body = """
def interrupted(*_):
    os.write(2, b"C")
signal.signal(signal.SIGINT, interrupted)
Path("ready").touch()
for _ in range(300):
    os.write(2, b".")  # as a background process may
    time.sleep(0.01)
"""
    first, second = pty.openpty()
    begins = "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{begins}{BEGIN}{body}"],
        cwd=tmp_path,
        stdin=second,
        stdout=second,
        stderr=second,
        start_new_session=True,
    )
    try:
        [child] = children(tmp_path)
        until((tmp_path / "ready").exists)
        os.write(first, b"\x03")
        time.sleep(0.2)
        os.write(first, b"\x1a")
        # A session leader is not stopped by its terminal where nobody could let it go on, but by our own signal it is.
        until(lambda: (state(process.pid), state(child)) == ("T", "T"))
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert os.read(first, 10_000).count(b"C") == 2  # "^C", the echo of the terminal, and ours
    os.close(first)
    os.close(second)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.e2e
def test_a_killed_run_gives_the_same_bits_and_says_so_once(tmp_path: Path) -> None:
    arguments = ["run", "--set", "workload.num_requests=20000", "--json"]
    env = {key: value for key, value in os.environ.items() if key not in UNWANTED}
    how = {"cwd": tmp_path, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    whole = subprocess.run([str(PIMSERVE), *arguments, "--out", "whole"], check=True, **how).stdout
    with subprocess.Popen([str(PIMSERVE), *arguments, "--out", "out", "--checkpoint", "kept"], **how) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "kept" / "steps.npy").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        [child] = (int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        os.kill(child, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == f"{KILLED}results in out\n"
    assert line(out, "digest") == line(whole, "digest")
    assert not (tmp_path / "kept").exists()


def line(document: str, key: str) -> str:
    return next(line for line in document.splitlines() if f'"{key}":' in line)
