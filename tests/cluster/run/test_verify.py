"""A flipped byte in any file of results or of a checkpoint is found: by `pimserve verify`, and by runs that go on."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.base.checksums import SUMS_FILE, Finding, write_checksums
from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.run.checkpoint import CheckpointFolder
from pimserve.cluster.run.results import SPAN
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.sweep.sweep import sweep
from pimserve.cluster.sweep.verify import verify
from pimserve.cluster.sweep.workers import Task, make
from pimserve.errors import InputError
from pimserve.scheduler.control import Inject, RunView, ScaleRate
from tests.cluster.documents import run
from tests.cluster.sweep.grids import small
from tests.command import pimserve
from tests.examples import examples

RESULTS = (
    "SHA256SUMS",
    "commands.jsonl",
    "request_numbers.npy",
    "requests.npy",
    "scenario.yaml",
    "steps.npy",
    "summary.json",
)
CHECKPOINT = ("checkpoint", "commands.jsonl", "steps.npy", "target.json")
PREPARED = prepare(load_scenario(None, ["workload.num_requests=60"]))


class InThisProcess:
    """Makes the runs of a sweep one after the other."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, str | None]]:
        for task in tasks:
            yield task, make(task.scenario, task.folder)


class Killed(BaseException):
    """Stands for the end of the process."""


class Changes:
    """Gives a run two commands, and ends its process after the second."""

    def __init__(self, *, dies: bool) -> None:
        self.dies = dies

    def next_barrier_fs(self, now_fs: int) -> int:
        return now_fs + 200 * 10**12

    def ended(self, view: RunView) -> None:
        pass

    def barrier(self, view: RunView) -> None:
        if view.window == 3:
            view.apply(ScaleRate(0.5))
        if view.window == 6:
            view.apply(Inject((100, 200), (5, 6), delay_s=0.1))
        if view.window == 9 and self.dies:
            raise Killed


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "run"
    run(PREPARED, folder, control=Changes(dies=False))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFolder, "due", lambda kept: len(kept.log.entries) == 1)
        with pytest.raises(Killed):
            run(PREPARED, folder.with_name("out"), control=Changes(dies=True), checkpoints=folder)
    return folder


def findings(folder: Path) -> list[Finding]:
    return [finding for verdict in verify(folder) for finding in verdict.findings]


def problems(folder: Path) -> dict[str, str]:
    """What is wrong, by name of file, without line numbers."""
    return {Path(finding.file).name.partition(":")[0]: finding.problem for finding in findings(folder)}


def flipped(file: Path, place: int, bits: int) -> Path:
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= bits
    file.write_bytes(content)
    return file


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.is_file() and file.stat().st_size}


def test_a_whole_folder_is_as_it_was_written(results: Path, checkpoint: Path) -> None:
    assert names(results) == set(RESULTS)
    assert names(checkpoint) == set(CHECKPOINT)
    assert [(verdict.kind, verdict.checked, verdict.findings) for verdict in verify(results)] == [("results", 6, [])]
    assert [(verdict.kind, verdict.checked, verdict.findings) for verdict in verify(checkpoint)] == [
        ("checkpoint", 4, [])
    ]


def test_sha256sum_reads_the_list(results: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", SUMS_FILE]
    subprocess.run(command, cwd=results, check=True)


@pytest.mark.parametrize("name", RESULTS)
@examples(25)
@given(place=st.integers(0, 10**6), bits=st.integers(1, 255))
def test_a_flipped_byte_of_results_is_found(results: Path, name: str, place: int, bits: int) -> None:
    whole = (results / name).read_bytes()
    try:
        flipped(results / name, place, bits)
        assert problems(results) == {name: "damaged"}
    finally:
        (results / name).write_bytes(whole)


@pytest.mark.parametrize("name", CHECKPOINT)
@examples(25)
@given(place=st.integers(0, 10**6), bits=st.integers(1, 255))
def test_no_run_goes_on_from_a_checkpoint_with_a_flipped_byte(
    checkpoint: Path, name: str, place: int, bits: int
) -> None:
    whole = (checkpoint / name).read_bytes()
    used = checked_bytes(checkpoint) if name == "steps.npy" else len(whole)
    try:
        file = flipped(checkpoint / name, place % used, bits)
        assert set(problems(checkpoint)) == {name}
        with pytest.raises(InputError) as refused:
            run(PREPARED, checkpoint.with_name("out"), checkpoints=checkpoint)
        assert str(refused.value).startswith(str(file))
        assert not checkpoint.with_name("out").exists()
    finally:
        (checkpoint / name).write_bytes(whole)


def checked_bytes(checkpoint: Path) -> int:
    """Of steps.npy: what comes after them is cut off when the run goes on."""
    state = json.loads((checkpoint / "checkpoint").read_bytes().partition(b"\n")[0])
    assert state["span_rows"] > 10
    header = 10 + int.from_bytes((checkpoint / "steps.npy").read_bytes()[8:10], "little")
    return header + int(state["span_rows"]) * SPAN.itemsize


@pytest.mark.parametrize("name", RESULTS)
def test_truncated_missing_and_unknown_files_of_results(results: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(results, tmp_path / "copy"))
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    assert problems(copy) == {name: "damaged"}
    (copy / name).unlink()
    assert problems(copy) == {name: "missing"}
    (copy / name).write_bytes(content)
    (copy / "notes.txt").touch()
    assert problems(copy) == {"notes.txt": "unknown"}


@pytest.mark.parametrize("name", ["requests.npy", "SHA256SUMS"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(results: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(results, tmp_path / "copy"))
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert problems(copy) == {name: "damaged"}


@pytest.mark.parametrize("name", CHECKPOINT)
def test_truncated_and_missing_files_of_a_checkpoint(checkpoint: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:50])
    assert problems(copy) == {name: "damaged"}
    with pytest.raises(InputError, match=name):
        run(PREPARED, tmp_path / "out", checkpoints=copy)
    (copy / name).unlink()
    if name in {"commands.jsonl", "steps.npy"}:  # without the others it is a run that did not come so far
        assert problems(copy) == {name: "missing"}
        with pytest.raises(InputError, match=f"{name}: is missing"):
            run(PREPARED, tmp_path / "out", checkpoints=copy)
    (copy / "notes.txt").touch()
    assert problems(copy)["notes.txt"] == "unknown"


def test_damage_of_one_file_of_a_checkpoint_hides_none_of_another(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    for name in ("commands.jsonl", "steps.npy", "target.json"):
        flipped(copy / name, 3, 1)
    assert set(problems(copy)) == {"commands.jsonl", "steps.npy", "target.json"}
    flipped(copy / "checkpoint", 3, 1)
    assert set(problems(copy)) == {"checkpoint", "commands.jsonl", "target.json"}  # which says what steps there are


def test_what_report_and_timeline_write_into_the_folder_is_not_of_the_run(results: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(results, tmp_path / "copy"))
    for name in ("report.html", "timeline.json"):
        (copy / name).touch()
    assert not findings(copy)


def test_folders_of_earlier_versions_say_so(results: Path, checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(results, tmp_path / "copy"))
    summary = json.loads((copy / "summary.json").read_text())
    summary["simulator"] |= {"plugins": None, "version": "0.1"}
    del summary["simulator"]["plugins"]
    (copy / "summary.json").write_text(json.dumps(summary))
    (copy / SUMS_FILE).unlink()
    (finding,) = findings(copy)
    assert finding.problem == "unchecked"
    assert "was written by an earlier pimserve (0.1), which kept no checksums" in finding.message
    kept = Path(shutil.copytree(checkpoint, tmp_path / "kept"))
    content = (kept / "checkpoint").read_bytes()
    (kept / "checkpoint").write_bytes(content.replace(b'"version": ', b'"version": -', 1))
    assert problems(kept) == {"checkpoint": "unchecked"}


def test_a_sweep_is_checked_with_all_its_runs(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    sweep(small(["cluster.replicas=1,2"]), folder, InThisProcess())
    assert [(verdict.kind, len(verdict.findings)) for verdict in verify(folder)] == [
        ("sweep", 0),
        ("results", 0),
        ("results", 0),
    ]
    (damaged, *_) = folder.glob("*/*/requests.npy")
    flipped(damaged, 200, 1)
    flipped(folder / "sweep.csv", 3, 1)
    (folder / "notes.txt").touch()
    assert problems(folder) == {"sweep.csv": "damaged", "notes.txt": "unknown", "requests.npy": "damaged"}


def test_the_command_says_which_file_and_exits_with_1(results: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(results, tmp_path / "copy"))
    whole = pimserve(tmp_path, "verify", "copy")
    assert (whole.returncode, whole.stdout) == (0, "ok: copy: results, 6 files as they were written\n")
    flipped(copy / "steps.npy", 1000, 4)
    damaged = pimserve(tmp_path, "verify", "copy", results)
    assert damaged.returncode == 1
    assert damaged.stdout.startswith("damaged: copy/steps.npy: has sha256 ")
    assert f"ok: {results}: results" in damaged.stdout
    as_json = pimserve(tmp_path, "verify", "--json", "copy")
    (verdict,) = json.loads(as_json.stdout)
    assert (as_json.returncode, verdict["kind"], verdict["findings"][0]["file"]) == (1, "results", "copy/steps.npy")
    none = pimserve(tmp_path, "verify", ".")
    assert (none.returncode, none.stdout) == (2, "")
    assert "must be a results folder, a folder of checkpoints, or that of a sweep" in none.stderr


def test_a_folder_that_is_in_use_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "kept"))
    with take_lock(copy / "lock"), pytest.raises(InputError, match="is in use by a run: its files change"):
        verify(copy)


def test_all_is_on_the_disk_before_the_list_is_written(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(results, tmp_path / "copy"))
    (copy / SUMS_FILE).unlink()
    synced: list[tuple[int, int]] = []

    def fsync(handle: int) -> None:
        status = os.fstat(handle)
        synced.append((status.st_dev, status.st_ino))

    monkeypatch.setattr("pimserve.cluster.base.checksums.os.fsync", fsync)
    write_checksums(copy)
    expected = [(copy / name).stat() for name in sorted(RESULTS) if name != SUMS_FILE]
    assert synced[: len(expected)] == [(status.st_dev, status.st_ino) for status in expected]
