"""Checkpoints on disk: written whole, refused when they are not ours, and a killed run goes on to the same bits."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.run.checkpoint import CheckpointFolder, has_checkpoint
from pimserve.cluster.run.checkpoint_files import VERSION
from pimserve.cluster.run.export import export_table
from pimserve.cluster.run.read_summary import load_summary
from pimserve.cluster.run.results import load_numbers, load_table
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from pimserve.scheduler.control import Inject, RunView, ScaleRate
from pimserve.scheduler.requests import DTYPE
from tests.cluster.documents import run

ROWS = np.zeros(3, DTYPE)


def scenario(*overrides: str) -> Scenario:
    return load_scenario(None, ["workload.num_requests=60", *overrides])


class Killed(BaseException):
    """Stands for the end of the process."""


class DiesAfter:
    """Ends windows every 0.2 s of simulated time, slows down traffic in the third, and dies in one."""

    def __init__(self, window: int) -> None:
        self.window = window

    def next_barrier_fs(self, now_fs: int) -> int:
        return now_fs + 200 * 10**12

    def ended(self, view):
        pass

    def barrier(self, view: RunView) -> None:
        if view.window == 3:
            view.apply(ScaleRate(0.5))
        if view.window == self.window:
            raise Killed


@pytest.fixture(autouse=True)
def _checkpoints_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointFolder, "due", lambda _: True)


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding"])
def test_a_run_that_dies_goes_on_to_the_same_bits(tmp_path: Path, router: str) -> None:
    asked = scenario("cluster.replicas=2", f"scheduler.router={router}")
    whole = run(prepare(asked), tmp_path / "whole", control=DiesAfter(-1))
    for window in (2, 5, 9):  # before the command of window 3 was given, and after
        with pytest.raises(Killed):
            run(prepare(asked), tmp_path / "out", control=DiesAfter(window), checkpoints=tmp_path / "kept")
    summary = run(prepare(asked), tmp_path / "out", checkpoints=tmp_path / "kept")
    assert summary["digest"] == whole["digest"]
    assert summary["simulator"]["continued"]
    assert not (tmp_path / "kept").exists()
    spans, expected = (np.sort(load_table(tmp_path / name, "steps")) for name in ("out", "whole"))
    assert (spans == expected).all()
    commands = (tmp_path / "out" / "commands.jsonl").read_text().splitlines()
    assert [json.loads(line)["command"] for line in commands] == ["scale_rate"]
    same = {key: value for key, value in whole.items() if key not in {"results", "simulator"}}
    assert {key: summary[key] for key in same} == same


def test_checkpoints_are_no_results_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(prepare(scenario()), tmp_path / "out", control=DiesAfter(2), checkpoints=tmp_path / "kept")
    with pytest.raises(InputError) as caught:
        load_summary(tmp_path / "kept")
    goes_on = f"the command that began it, with --checkpoint {tmp_path / 'kept'}, goes on"
    assert str(caught.value).endswith(f"no results here: checkpoints of a run that has not ended; {goes_on}")
    with pytest.raises(InputError) as caught:
        load_table(tmp_path / "kept", "requests")
    assert str(caught.value).endswith(f"checkpoints of a run that has not ended; {goes_on}")


def test_another_scenario_another_run_and_damage_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with pytest.raises(Killed):
        run(prepare(scenario()), tmp_path / "out", control=DiesAfter(4), checkpoints=kept)
    with pytest.raises(InputError, match="holds a checkpoint of another scenario"):
        run(prepare(scenario("run.seed=1")), tmp_path / "out", checkpoints=kept)
    with CheckpointFolder(tmp_path / "used", "x"), pytest.raises(InputError, match="is in use by another run"):
        CheckpointFolder(tmp_path / "used", "x")
    whole = (kept / "checkpoint").read_bytes()
    for content, message in (
        (whole[:-1], "is damaged: its checksum differs"),
        (
            whole.replace(b'"version": %d' % VERSION, b'"version": 10', 1),
            f"has version 10; this pimserve reads {VERSION}",
        ),
        (whole.replace(b'"span_rows": ', b'"span_rows": 1', 1), "is damaged: its checksum differs"),
        (b"[]\n" + whole, "is no checkpoint of pimserve"),
        (b"", "is no checkpoint of pimserve"),
    ):
        (kept / "checkpoint").write_bytes(content)
        with pytest.raises(InputError, match=message):
            run(prepare(scenario()), tmp_path / "out", checkpoints=kept)
    assert not (tmp_path / "out").exists()


def test_a_command_that_was_cut_short_was_never_taken(tmp_path: Path) -> None:
    def take(kept: CheckpointFolder) -> None:
        kept.save({"a": 1}, ROWS)
        kept.log.taken(5, {"command": "scale_rate", "factor": 2.0})
        kept.log.taken(7, {"command": "scale_rate", "factor": 3.0})
        raise Killed

    with pytest.raises(Killed), CheckpointFolder(tmp_path, "x") as kept:
        take(kept)
    file = tmp_path / "commands.jsonl"
    file.write_bytes(file.read_bytes()[:-4])
    with CheckpointFolder(tmp_path, "x") as kept:
        assert kept.load()[0] == {"a": 1}
        assert kept.log.pending(0) == (5, [{"command": "scale_rate", "factor": 2.0}])
        assert kept.log.pending(6) is None


def test_commands_before_the_first_checkpoint_are_not_lost(tmp_path: Path) -> None:
    asked = scenario()
    whole = run(prepare(asked), tmp_path / "whole", control=DiesAfter(-1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFolder, "due", lambda _: False)
        with pytest.raises(Killed):
            run(prepare(asked), tmp_path / "out", control=DiesAfter(5), checkpoints=tmp_path / "kept")
    summary = run(prepare(asked), tmp_path / "out", checkpoints=tmp_path / "kept")
    assert summary["digest"] == whole["digest"]
    assert summary["simulator"]["continued"]


def test_commands_come_in_order_of_time_and_after_idle_times(tmp_path: Path) -> None:
    class Injects:
        """Ends windows every second, gives commands at some times, and dies."""

        def __init__(self, commands: dict[int, Inject], dies_s: int) -> None:
            self.commands, self.dies_s = commands, dies_s

        def next_barrier_fs(self, now_fs: int) -> int:
            return now_fs + 10**15

        def ended(self, view):
            pass

        def barrier(self, view: RunView) -> None:
            second = view.now_fs // 10**15
            if second in self.commands:
                view.apply(self.commands[second])
            if second == self.dies_s:
                raise Killed

    asked = scenario("workload.arrival={process: constant, rate_per_s: 50}", "workload.num_requests=400")
    late, early = Inject((5,), (1,), delay_s=1.0), Inject((7,), (1,), delay_s=30.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFolder, "due", lambda _: False)
        for control in (Injects({7: late}, 7), Injects({3: early}, 3)):  # the second life is given an earlier command
            with pytest.raises(Killed):
                run(prepare(asked), tmp_path / "out", control=control, checkpoints=tmp_path / "kept")
    summary = run(prepare(asked), tmp_path / "out", control=Injects({}, -1), checkpoints=tmp_path / "kept")
    whole = run(prepare(asked), tmp_path / "whole", control=Injects({3: early, 7: late}, -1))
    assert summary["requests"]["total"] == 402
    assert summary["digest"] == whole["digest"]
    # The late one was told first that it is number 400, and keeps it; the early one of the second life is 401.
    table, numbers = load_table(tmp_path / "out", "requests"), load_numbers(tmp_path / "out", 402)
    told = {int(number): int(row["input_tokens"]) for number, row in zip(numbers, table, strict=True)}
    assert (told[400], told[401]) == (5, 7)
    assert load_numbers(tmp_path / "whole", 402)[np.argsort(numbers)[400]] == 401  # told later there
    exported = io.StringIO()
    export_table(tmp_path / "out", "requests", exported)
    rows = {int(row["request"]): row for row in csv.DictReader(io.StringIO(exported.getvalue()))}
    assert (rows[400]["input_tokens"], rows[401]["input_tokens"], len(rows)) == ("5", "7", 402)


@pytest.mark.medium
def test_results_go_where_they_would_have_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as killed:  # SIGKILL leaves the hidden folder that kept the name
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            run(prepare(scenario()), checkpoints=tmp_path / "kept", control=DiesAfter(8))
    assert [entry.name[:9] for entry in (tmp_path / "results").iterdir()] == [".default."]
    summary = run(prepare(scenario()), checkpoints=tmp_path / "kept", control=DiesAfter(-1))
    assert Path(summary["results"]) == tmp_path / "results" / "default"
    assert [entry.name for entry in (tmp_path / "results").iterdir()] == ["default"]
    assert not (tmp_path / "kept").exists()


def test_a_run_that_died_with_its_results_in_place_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    with monkeypatch.context() as killed:

        def no_more(folder: CheckpointFolder, *_: object) -> None:
            folder._lock.close()
            raise Killed

        killed.setattr(CheckpointFolder, "__exit__", no_more)
        with pytest.raises(Killed):
            run(prepare(scenario()), out, checkpoints=kept)
    whole = json.loads((out / "summary.json").read_text())
    assert kept.exists()
    assert run(prepare(scenario()), out, checkpoints=kept) == whole
    assert not kept.exists()
    with pytest.raises(InputError, match="exists already"):
        run(prepare(scenario()), out, checkpoints=kept)


def test_a_trace_that_has_changed_makes_it_another_run(tmp_path: Path) -> None:
    trace, kept = tmp_path / "trace.csv", tmp_path / "kept"
    rows = "".join(f"{index / 10},100,20\n" for index in range(60))
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    asked = load_scenario(None, (), f"csv:{trace}")
    with pytest.raises(Killed):
        run(prepare(asked), tmp_path / "out", checkpoints=kept, control=DiesAfter(8))
    trace.write_text(trace.read_text().replace("3.0,100", "3.0,101"))
    with pytest.raises(InputError, match="checkpoint of another scenario"):
        run(prepare(asked), tmp_path / "out", checkpoints=kept)


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    run(prepare(scenario()), tmp_path / "results" / "earlier")
    for folder in (tmp_path, tmp_path / "results", tmp_path / "results" / "earlier"):
        with pytest.raises(InputError, match="is no folder of checkpoints, for it holds"):
            run(prepare(scenario()), tmp_path / "out", checkpoints=folder)
    assert load_table(tmp_path / "results" / "earlier", "steps").size


def test_steps_that_are_lost_are_missed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with pytest.raises(Killed):
        run(prepare(scenario()), tmp_path / "out", control=DiesAfter(9), checkpoints=kept)
    whole = (kept / "steps.npy").read_bytes()
    (kept / "steps.npy").write_bytes(whole[:-200])
    with pytest.raises(InputError, match="is cut short: its checkpoint has"):
        run(prepare(scenario()), tmp_path / "out", checkpoints=kept)
    (kept / "steps.npy").unlink()
    with pytest.raises(InputError, match="is missing, which belongs to a checkpoint"):
        run(prepare(scenario()), tmp_path / "out", checkpoints=kept)


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / ".checkpoint.0123abcd.new").write_bytes(b"half")
    with pytest.raises(Killed):
        run(prepare(scenario()), tmp_path / "out", control=DiesAfter(9), checkpoints=kept)
    assert not list(kept.glob(".*"))


SCRIPT = """
import sys
from pathlib import Path
from pimserve.cluster.run import checkpoint
from pimserve.cluster.run.run import run
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
checkpoint.CheckpointFolder.due = lambda _: True
scenario = load_scenario(None, ["workload.num_requests=40000", "cluster.replicas=2"])
print(run(prepare(scenario), Path(sys.argv[1]), checkpoints=Path(sys.argv[2])).digest)
"""


def test_commands_alone_are_something_to_go_on_from(tmp_path: Path) -> None:
    """They were acknowledged: a run that fails before its first checkpoint is not to be launched anew without them."""
    assert not has_checkpoint(tmp_path)
    (tmp_path / "commands.jsonl").touch()
    assert has_checkpoint(tmp_path)


@pytest.mark.e2e
@pytest.mark.slow
def test_sigkill_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), str(tmp_path / "kept")]
    killed = 0
    for wait in (0.1, 0.3, 0.7):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while not (tmp_path / "kept" / "checkpoint").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    whole = subprocess.run([*command[:-2], str(tmp_path / "w"), str(tmp_path / "k")], capture_output=True, check=True)
    assert done.stdout.encode() == whole.stdout
