"""What can be wrong with a command: it ends with 2 and a message, and writes nothing."""

import os
from pathlib import Path

import pytest

from tests.cluster.scenario.refusals import CSV
from tests.command import pimserve

COMMANDS = [
    (["run", "none.yaml"], "none.yaml: no such file"),
    (["run", "broken.yaml"], "broken.yaml:2: not valid YAML"),
    (["run", "deep.yaml"], "deep.yaml: is nested deeper than 32 levels"),
    (["run", "--set", "scheduler.max_num_seqs=0"], "scheduler.max_num_seqs: must be greater than 0"),
    (["run", "--set", "cluster.devices_per_node=1", "--json"], "mixtral-8x7b does not fit"),
    (["run", "--trace", "csv:broken.csv", "--out", "out"], "broken.csv:2: input_tokens is 'x'"),
    (["run", "--set", "workload.num_requests=5", "--out", "full"], "full: exists already"),
    (["compare", "full", "none"], "full: no results here"),
    (["export", "full"], "full: has no requests.npy"),
    (["run", "--trace", os.fsdecode(b"csv:tr\xff.csv")], "--trace.path: must be UTF-8 text"),
    (["run", "--set", os.fsdecode(b"workload.trace={format: csv, path: tr\xff.csv}")], "is not UTF-8 text (byte 0xff)"),
    (["run", os.fsdecode(b"tr\xff.yaml")], r"tr\xff.yaml: no such file"),
    (["devices", "tpu"], "unknown device 'tpu'"),
]


@pytest.mark.e2e
@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=[" ".join(command) for command, _ in COMMANDS])
def test_commands_end_with_2_and_a_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("run:\n\tseed: 1\n")
    (tmp_path / "deep.yaml").write_text("run: " + "[" * 200_000)
    (tmp_path / "broken.csv").write_bytes(CSV + b"0.0,x,5\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = pimserve(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
