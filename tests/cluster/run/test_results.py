"""The results folder: whole or absent, read back, and its tables as CSV."""

import csv
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import pimserve.cluster.run.run as run_module
from pimserve.cluster.base.files import write_json
from pimserve.cluster.base.whole_folders import free_folder, results_folder
from pimserve.cluster.run.export import export_table
from pimserve.cluster.run.read_summary import load_document
from pimserve.cluster.run.results import (
    SPAN,
    SpanFile,
    UnwrittenError,
    load_table,
)
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from pimserve.scheduler.steplog import SpanColumns
from tests.cluster.documents import run

FILES = {"scenario.yaml", "summary.json", "requests.npy", "steps.npy", "SHA256SUMS"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two replicas that is stopped before its last requests are done."""
    folder = tmp_path_factory.mktemp("results") / "run"
    overrides = ["model=llama-3.1-8b", "workload.num_requests=40", "cluster.replicas=2", "run.max_time_s=10"]
    run(prepare(load_scenario(None, overrides)), folder)
    return folder


def test_a_run_leaves_its_files_and_nothing_else(done: Path) -> None:
    assert {file.name for file in done.iterdir()} == FILES
    assert list(done.parent.iterdir()) == [done]


class Stop(BaseException):
    """Anything that ends a run, Ctrl-C for one."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("where", ["serve", "write_json", "simulator_of"])
def test_a_run_that_is_ended_leaves_nothing(
    where: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        assert list(tmp_path.rglob("steps.npy")), "fails too early to have anything to leave"
        raise error

    monkeypatch.setattr(run_module, where, fail)
    with pytest.raises(error):
        run(prepare(load_scenario(None, ["workload.num_requests=3"])), tmp_path / "new" / "deep" / "run")
    assert list(tmp_path.iterdir()) == []


def test_parents_that_were_there_or_that_others_use_stay(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with pytest.raises(Stop), results_folder(tmp_path / "results" / "a", "a"):
        raise Stop
    assert list((tmp_path / "results").iterdir()) == []
    with suppress(Stop), results_folder(tmp_path / "b" / "c" / "d", "a"):
        (tmp_path / "b" / "other").mkdir()
        raise Stop
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["other"]


def test_nobody_sees_a_folder_that_is_not_finished(tmp_path: Path) -> None:
    with results_folder(tmp_path / "out", "x") as (folder, target):
        (folder / "file").write_text("half")
        assert target == tmp_path / "out"
        assert not target.exists()  # whoever looks through all results finds whole ones only
        assert folder.parent == tmp_path
        assert folder.name.startswith(".")
    assert [file.name for file in target.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == [target]


def test_default_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("results/x", "results/x-2", "results/x-3"):
        assert free_folder("x") == Path(expected)
        with results_folder(None, "x") as (folder, target):
            assert target == Path(expected)
            (folder / "file").touch()
    assert sorted(path.name for path in Path("results").iterdir()) == ["x", "x-2", "x-3"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written: Permission denied"), results_folder(tmp_path / "x", "x"):
        pass


def rows(begins_ps: list[int], durations_fs: list[int]) -> np.ndarray:
    block = np.zeros((len(durations_fs), len(SpanColumns._fields)), np.int64)
    block[:, SpanColumns._fields.index("steps")] = 1
    block[:, SpanColumns._fields.index("begin_ps")] = begins_ps
    block[:, SpanColumns._fields.index("duration_fs")] = durations_fs
    return block


def test_span_file_grows_block_by_block(tmp_path: Path) -> None:
    file = SpanFile(tmp_path / "steps.npy")
    file.write(0, rows([0, 2], [1500, 700]))
    file.write(3, rows([7], [10**6]))
    file.finish(tmp_path / "steps.npy")
    file.close()
    table = load_table(tmp_path, "steps")
    assert table.dtype == SPAN
    assert table["replica"].tolist() == [0, 0, 3]
    assert table["begin_ps"].tolist() == [0, 2, 7]
    assert table["duration_fs"].tolist() == [1500, 700, 10**6]


def test_span_file_without_rows_and_with_many(tmp_path: Path) -> None:
    for name, blocks in (("none", 0), ("many", 300)):
        file = SpanFile(tmp_path / name)
        for _ in range(blocks):
            file.write(0, rows([0] * 1000, [1] * 1000))
        file.finish(tmp_path / name)
        assert np.load(tmp_path / name).shape == (blocks * 1000,)


def test_what_is_not_a_result_is_refused(tmp_path: Path, done: Path) -> None:
    with pytest.raises(InputError, match=r"no results here: a folder with summary\.json is needed"):
        load_document(tmp_path)
    with pytest.raises(InputError, match="no results here: nothing is there; a run writes its results as it ends"):
        load_document(tmp_path / "none")
    for name, content in (("a", "{"), ("b", "[1]"), ("c", '{"x": 1}'), ("d", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=rf"{tmp_path / name}: (cannot be read as a summary|is not a summary)"):
            load_document(tmp_path / name)
    (tmp_path / "e").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read as a summary"):
        load_document(tmp_path / "e")
    with pytest.raises(InputError, match=r"has no steps.npy"):
        load_table(tmp_path, "steps")
    (tmp_path / "steps.npy").write_bytes(b"no numpy")
    with pytest.raises(InputError, match=r"steps.npy: cannot be read"):
        load_table(tmp_path, "steps")
    (tmp_path / "requests.npy").write_bytes((done / "requests.npy").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"requests.npy: cannot be read"):
        load_table(tmp_path, "requests")
    assert load_document(done) == load_document(done / "summary.json")


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "s.json", {"x": float("nan")})


def exported(folder: Path, what: str) -> list[dict[str, str]]:
    text = io.StringIO()
    count = export_table(folder, what, text)
    found = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert len(found) == count
    return found


def test_requests_as_csv(done: Path) -> None:
    table, found = load_table(done, "requests"), exported(done, "requests")
    assert len(found) == len(table) > 0
    always = table.dtype.names[: table.dtype.names.index("class_id")]  # the others are of runs that have such a thing
    assert list(found[0]) == [*(name.replace("_ps", "_s") for name in always), "request"]
    assert {row["status"] for row in found} == {"finished", "unfinished"}
    for row, expected in zip(found, table, strict=True):
        for name in ("arrival", "first_scheduled", "first_token", "finish"):
            ps = expected[f"{name}_ps"].item()
            whole, _, fraction = row[f"{name}_s"].partition(".")
            assert (int(whole + fraction) if whole else -1) == ps
            assert not whole or len(fraction) == 12
        for name in ("input_tokens", "output_tokens", "emitted_tokens", "preemptions", "replica", "truncated"):
            assert int(row[name]) == expected[name]
        assert row["status"] == ("unfinished", "finished", "rejected")[expected["status"]]


def test_requests_of_another_version_are_refused(done: Path, tmp_path: Path) -> None:
    table = load_table(done, "requests")
    for other in (table[[name for name in table.dtype.names or () if name != "swaps"]], np.zeros(3)):
        np.save(tmp_path / "requests.npy", other)
        with pytest.raises(InputError, match=r"requests\.npy: is not a table of this version"):
            export_table(tmp_path, "requests", io.StringIO())


def test_steps_as_csv(done: Path) -> None:
    spans, found = load_table(done, "steps"), exported(done, "steps")
    summary = load_document(done)
    assert len(found) == summary["batch"]["steps"] == spans["steps"].sum()
    shape = ["decodes", "context", "prefill_tokens", "chunks", "outputs"]
    assert list(found[0]) == ["replica", "step", "start_s", "duration_s", *shape]
    for replica in (0, 1):
        mine = [row for row in found if row["replica"] == str(replica)]
        assert [int(row["step"]) for row in mine] == list(range(len(mine)))
        begins = [float(row["start_s"]) for row in mine]
        ends = [begin + float(row["duration_s"]) for begin, row in zip(begins, mine, strict=True)]
        assert all(nxt >= end - 3e-12 for end, nxt in zip(ends, begins[1:], strict=False))
        of_replica = spans[spans["replica"] == replica]
        assert sum(float(row["duration_s"]) for row in mine) == pytest.approx(of_replica["duration_fs"].sum() / 1e15)
        first_of_span = np.cumsum(of_replica["steps"]) - of_replica["steps"]
        for span, index in zip(of_replica, first_of_span.tolist(), strict=True):
            assert begins[index] == pytest.approx(span["begin_ps"] / 1e12, abs=2e-12)
            assert [
                int(mine[index][name]) for name in ("decodes", "context", "prefill_tokens", "chunks", "outputs")
            ] == [span[name] for name in ("decodes", "context", "prefill_tokens", "chunks", "outputs")]
    assert sum(int(row["outputs"]) for row in found) == summary["tokens"]["output"]


@pytest.mark.parametrize("digest", ["0" * 64, None])
def test_steps_of_another_version_are_refused(digest: str | None, done: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    assert exported(copy, "steps")
    summary = load_document(copy)
    del summary["plan_digest"]
    write_json(copy / "summary.json", summary if digest is None else {**summary, "plan_digest": digest})
    text = io.StringIO()
    with pytest.raises(InputError, match=rf"^{copy}: its steps cannot be worked out: plan_digest .* another version"):
        export_table(copy, "steps", text)
    assert text.getvalue() == ""
    assert exported(copy, "requests")


@pytest.mark.medium
def test_steps_of_exactly_drawn_experts_as_csv(tmp_path: Path) -> None:
    summary = run(prepare(load_scenario(None, ["workload.num_requests=3", "routing.mode=exact"])), tmp_path / "r")
    found, spans = exported(tmp_path / "r", "steps"), load_table(tmp_path / "r", "steps")
    assert len(found) == summary["batch"]["steps"]
    # Each is drawn anew, to the very same femtosecond.
    assert [round(float(row["duration_s"]) * 1e15) for row in found] == spans["duration_fs"].tolist()


def test_runs_at_the_same_time_take_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with results_folder(None, "x") as (folder, first), results_folder(None, "x") as (_, second):
        (folder / "file").touch()
        with pytest.raises(InputError, match="is being written by another run"), results_folder(first, "x"):
            pass
    assert (first.name, second.name) == ("x", "x-2")
    with pytest.raises(InputError, match="exists already"), results_folder(first, "x"):
        pass
    with pytest.raises(RuntimeError), results_folder(None, "y"):
        raise RuntimeError
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["x", "x-2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace('"schema_version": 2', '"schema_version": 99'), "has schema_version 99"),
        (lambda s: s.replace('"latency_s"', '"latency"'), "latency_s missing"),
        (lambda s: s.replace('"joules": ', '"joules": NaN, "x": '), "NaN is not JSON"),
        (lambda _: "[" * 100_000, "cannot be read as a summary"),
    ],
)
def test_a_changed_summary_is_refused(tmp_path: Path, done: Path, change: Callable[[str], str], message: str) -> None:
    (tmp_path / "summary.json").write_text(change((done / "summary.json").read_text()))
    with pytest.raises(InputError, match=message):
        load_document(tmp_path)


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requests.npy").touch()
    with pytest.raises(InputError, match="cannot be read"):
        load_table(tmp_path, "requests")


def test_what_a_killed_run_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = """
import os, signal
from pimserve.cluster.base.whole_folders import results_folder
with results_folder(None, "x") as (folder, target):
    (folder / "half").write_text("of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name[:2] for path in Path("results").iterdir()] == [".x"]  # what results/* does not match
    with results_folder(None, "x") as (folder, _):
        assert list(folder.iterdir()) == []
        (folder / "file").touch()
    assert [path.name for path in Path("results").iterdir()] == ["x"]


def test_names_too_long_for_a_hidden_folder_of_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "n" * 240
    with results_folder(None, name) as (_, first), results_folder(None, name) as (_, second):
        assert (first.name, second.name) == (name, f"{name}-2")


def test_a_full_disk_costs_the_steps_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on when steps.npy cannot grow, and its figures come with the error."""
    real = SpanFile.write

    def write(self: SpanFile, replica: int, block: np.ndarray) -> None:
        real(self, replica, block)
        self._failed = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SpanFile, "write", write)
    scenario = load_scenario(None, ["workload.num_requests=20"])
    with pytest.raises(UnwrittenError, match="No space left on device") as full:
        run(prepare(scenario), tmp_path / "out")
    assert full.value.filename == str(tmp_path / "out")
    monkeypatch.undo()
    whole = run(prepare(scenario), tmp_path / "whole")
    assert full.value.summary.digest == whole["digest"]
    assert "results" not in full.value.summary.document()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
