"""Folders of Rays of our own: gone in the end, at the latest when the next is started, and only those of the dead."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HOLDS = """
import time
from pimserve.cluster.distributed.hosts.ray_folders import new_folder
folder, lock = new_folder()
print(folder, flush=True)
time.sleep(100)
"""
STARTS = """
from pimserve.cluster.distributed.hosts.ray_cluster import local_ray
with local_ray(1) as cluster:
    print(cluster.process.folder, flush=True)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_the_next_ray_removes_what_killed_ones_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        monkeypatch.setenv("TMPDIR", short)
        holders = [subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True) for _ in range(2)]
        try:
            folders = [Path(holder.stdout.readline().strip()) for holder in holders]
            for folder in folders:
                (folder / "session_1").mkdir()
            foreign = Path(short) / "pimserve-ray-unlocked"
            foreign.mkdir()
            holders[0].send_signal(signal.SIGKILL)
            holders[0].wait()
            done = subprocess.run([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True, check=True)
            assert Path(done.stdout.strip()).parent == Path(short)
            alive = folders[1]
            assert set(Path(short).iterdir()) == {foreign, alive, alive.with_name(f"{alive.name}.lock")}
            assert (alive / "session_1").is_dir()
        finally:
            for holder in holders:
                holder.kill()
                holder.communicate()
