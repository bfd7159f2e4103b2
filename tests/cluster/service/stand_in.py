"""A worker that does what the name of its scenario says: `python stand_in.py RUN_FOLDER [--paused]`."""

import os
import signal
import sys
import time
from pathlib import Path

import yaml

folder = Path(sys.argv[1])
name = yaml.safe_load((folder / "scenario.yaml").read_text())["name"]
starts = folder / "starts"
with starts.open("a") as file:
    file.write("x")
times = len(starts.read_text())

if name == "dies" or (name == "dies-twice" and times <= 2):
    os.kill(os.getpid(), signal.SIGKILL)
if name == "silent":
    time.sleep(600)
if name == "greedy":
    (folder / "worker.log").write_bytes(bytes(2_000_000))
    time.sleep(600)

from pimserve.cluster.service.worker import main  # noqa: E402 the others need not wait for it

main()
