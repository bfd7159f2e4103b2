"""A run once more from its results folder: with what it was told while it went, the same bits, wherever it ran."""

import json
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.base.checksums import SUMS_FILE, write_checksums
from pimserve.cluster.distributed.run_on import run_on
from pimserve.cluster.distributed.run_spread import Spread
from pimserve.cluster.run.checkpoint import CheckpointFolder
from pimserve.cluster.run.command_log import LINES, CommandLog, encoded, read_commands
from pimserve.cluster.run.live_control import LiveControl, RunEndedError
from pimserve.cluster.run.read_summary import read_summary
from pimserve.cluster.run.reproduce import read_recorded_run
from pimserve.cluster.run.run import run
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.errors import InputError, PimserveError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.control import ChangeScheduler, Command, Inject, RunView, ScaleRate
from tests.command import pimserve
from tests.examples import examples

SMALL = ("model=llama-3.1-8b", "workload.num_requests=60", "cluster.replicas=2")
SCENARIOS: Mapping[str, Prepared] = {
    name: prepare(load_scenario(None, [*SMALL, *overrides]))
    for name, overrides in {
        "round_robin": (),
        "exact_state": ("scheduler.router=least_outstanding",),
        "reports": ("scheduler.router=least_outstanding", "scheduler.report_interval_s=0.1"),
        "pools": ("cluster.pools={}",),
        "faults": ("faults.events=[{at_s: 3, replica: 1, kind: fail, for_s: 4}]",),
    }.items()
}
WINDOW_FS = 137 * 10**12
TABLES = ("requests.npy", "steps.npy", "request_numbers.npy", "commands.jsonl", "scenario.yaml")


class Killed(BaseException):
    """Stands for the end of the process."""


class Tells:
    """Gives commands at the ends of windows, and may end the process in one."""

    def __init__(self, commands: Mapping[int, Sequence[Command]], dies: int = -1) -> None:
        self.commands, self.dies = commands, dies

    def next_barrier_fs(self, now_fs: int) -> int:
        return now_fs + WINDOW_FS

    def ended(self, view: RunView) -> None:
        pass

    def barrier(self, view: RunView) -> None:
        for command in self.commands.get(view.now_fs // WINDOW_FS, ()):
            with suppress(InputError):  # a closed loop's, or a budget that is too small: refused, and not written down
                view.apply(command)
        if view.now_fs // WINDOW_FS == self.dies:
            raise Killed


def figures(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in summary.items() if key not in {"simulator", "results"}}


def replayed(folder: Path, out: Path, **how: Any) -> None:
    """Replay a run; see that all its files are the same, but for wall-clock figures."""
    recorded = read_recorded_run(folder)
    summary = run(recorded.prepared, out, commands=recorded.commands, **how)
    recorded.compare(summary)
    assert figures(out) == figures(folder)
    for name in TABLES:
        assert (out / name).exists() == (folder / name).exists(), name
        assert not (out / name).exists() or (out / name).read_bytes() == (folder / name).read_bytes(), name


COMMANDS = st.one_of(
    st.builds(
        ChangeScheduler,
        st.sampled_from([None, "round_robin", "least_outstanding"]),
        st.none() | st.integers(1, 300),
        st.none() | st.integers(300, 4000),
    ),
    st.builds(ScaleRate, st.floats(0.1, 10)),
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 50)), min_size=1, max_size=4).flatmap(
        lambda pairs: st.builds(
            Inject, st.just(tuple(a for a, _ in pairs)), st.just(tuple(b for _, b in pairs)), st.floats(0, 5)
        )
    ),
)


@pytest.mark.medium
@examples(15)
@given(
    name=st.sampled_from(sorted(SCENARIOS)),
    told=st.lists(st.tuples(st.integers(1, 80), COMMANDS), max_size=6),
)
def test_a_replay_of_any_commands_gives_the_same_bits(name: str, told: list[tuple[int, Command]]) -> None:
    commands: dict[int, list[Command]] = {}
    for window, command in told:
        commands.setdefault(window, []).append(command)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(SCENARIOS[name], folder / "run", control=Tells(commands))
        replayed(folder / "run", folder / "again")


class Told(threading.Thread):
    """Tells a live run what to do from outside, as fast as it answers, and holds it now and then."""

    def __init__(self, control: LiveControl, commands: Sequence[Command | None]) -> None:
        super().__init__(daemon=True)
        self.control, self.commands = control, commands

    def run(self) -> None:
        with suppress(RunEndedError):
            for command in self.commands:
                if command is None:  # pauses and pace change no bit, and are not written down
                    self.control.hold().result(10)
                    self.control.go_on().result(10)
                    continue
                with suppress(InputError):
                    self._ask(command).result(10)

    def _ask(self, command: Command) -> Future[None]:
        return self.control.ask(lambda view: view.apply(command))


@pytest.mark.medium
@examples(8)
@given(told=st.lists(st.none() | COMMANDS, min_size=1, max_size=8), speed=st.sampled_from([0.0, 200.0]))
def test_a_run_that_is_told_from_another_thread_is_replayed(told: list[Command | None], speed: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        control = LiveControl(RunningLatencies(Objectives(SloSpec())), speed=speed, held=True)
        teller = Told(control, [*told[:2], None, *told[2:]])
        teller.start()
        control.go_on()
        run(SCENARIOS["round_robin"], folder / "run", control=control, checkpoints=folder / "kept")
        control.end()
        teller.join(10)
        assert not teller.is_alive()
        replayed(folder / "run", folder / "again")


LATE, EARLY = Inject((50, 60), (3, 4), delay_s=2.0), Inject((70,), (5,), delay_s=9.0)


def test_a_run_that_was_restarted_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second life was given a command before the time of one that the first had: numbers and times stay."""
    asked, out, kept = SCENARIOS["exact_state"], tmp_path / "run", tmp_path / "kept"
    monkeypatch.setattr(CheckpointFolder, "due", lambda _: not (kept / "checkpoint").exists())
    for control in (Tells({4: [ScaleRate(0.7)], 30: [LATE]}, dies=31), Tells({12: [EARLY]}, dies=13)):
        with pytest.raises(Killed):
            run(asked, out, control=control, checkpoints=kept)
    run(asked, out, checkpoints=kept)
    times = [at_fs // WINDOW_FS for at_fs, _ in read_commands(out / "commands.jsonl")]
    assert times == [4, 12, 30]
    replayed(out, tmp_path / "again")


@pytest.mark.medium
def test_a_replay_that_is_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, kept = SCENARIOS["reports"], tmp_path / "kept"
    run(asked, tmp_path / "run", control=Tells({5: [LATE, ScaleRate(2)], 40: [EARLY]}))
    recorded = read_recorded_run(tmp_path / "run")
    monkeypatch.setattr(CheckpointFolder, "due", lambda _: True)
    for dies in (3, 20, 50):
        with pytest.raises(Killed):
            run(asked, tmp_path / "out", commands=recorded.commands, checkpoints=kept, control=Tells({}, dies))
    with pytest.raises(InputError, match="holds a checkpoint of a run with other commands"):
        run(asked, tmp_path / "out", commands=recorded.commands[1:], checkpoints=kept)
    replayed(tmp_path / "run", tmp_path / "out", checkpoints=kept)


@pytest.mark.medium
def test_a_run_on_processes_is_replayed_in_this_one(tmp_path: Path) -> None:
    place = {"spread": Spread(shards=2), "control": Tells({5: [LATE, ScaleRate(2)], 40: [EARLY]})}
    run_on("processes", SCENARIOS["round_robin"], tmp_path / "run", **place)
    replayed(tmp_path / "run", tmp_path / "again")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a trace, with commands."""
    folder = tmp_path_factory.mktemp("recorded")
    trace = folder / "trace.csv"
    rows = "".join(f"{index / 10},100,20\n" for index in range(60))
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    asked = prepare(load_scenario(None, ["model=llama-3.1-8b"], f"csv:{trace}"))
    run(asked, folder / "run", control=Tells({5: [ScaleRate(2)], 10: [LATE]}))
    return folder / "run"


def changed(summary: Path, **values: Any) -> None:
    """Change a summary, and the list of checksums with it."""
    document = json.loads(summary.read_text())
    summary.write_text(json.dumps({**document, **values}))
    write_checksums(summary.parent)


@pytest.mark.medium
def test_the_command_replays_and_compares(recorded: Path, tmp_path: Path) -> None:
    done = pimserve(tmp_path, "run", "--replay", recorded, "--out", "again")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, f"the same bits as {recorded}")
    assert figures(tmp_path / "again") == figures(recorded)
    assert pimserve(tmp_path, "run", "--replay", "again", "--out", "once_more", "--quiet").returncode == 0
    copy = Path(shutil.copytree(recorded, tmp_path / "copy"))
    changed(copy / "summary.json", digest="0" * 64)
    other = pimserve(tmp_path, "run", "--replay", "copy", "--out", "other", "--quiet")
    assert other.returncode == 2
    assert "the replay is not the run of copy: digest in summary.json differ" in other.stderr
    assert "it was run with pimserve " in other.stderr


@pytest.mark.parametrize(
    ("more", "names"),
    [
        (["scenario.yaml"], "SCENARIO"),
        (["--set", "run.seed=1", "--trace", "csv:x"], "--set, --trace"),
    ],
)
def test_a_replay_takes_no_other_scenario(recorded: Path, tmp_path: Path, more: list[str], names: str) -> None:
    refused = pimserve(tmp_path, "run", *more, "--replay", recorded)
    assert refused.returncode == 2
    assert refused.stderr == f"error: --replay: takes the whole scenario from its folder: leave out {names}\n"


def test_a_trace_by_a_relative_path_is_the_same_by_its_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,6\n")
    run(prepare(load_scenario(None, [], "csv:trace.csv")), tmp_path / "out")
    again = read_recorded_run(tmp_path / "out")
    again.compare(run(again.prepared, tmp_path / "again"))


def test_a_trace_that_is_missing_or_another_one_is_told(recorded: Path, tmp_path: Path) -> None:
    trace = recorded.parent / "trace.csv"
    whole = trace.read_text()
    try:
        trace.write_text(whole.replace("3.0,100", "3.0,101"))
        with pytest.raises(InputError, match=r"trace.csv: is not the trace that was run: it has sha256 .* had "):
            read_recorded_run(recorded)
        trace.unlink()
        with pytest.raises(InputError, match=r"trace.csv: no such file.*; a replay needs the trace that was run"):
            read_recorded_run(recorded)
    finally:
        trace.write_text(whole)


def test_what_was_damaged_is_not_replayed(recorded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(recorded, tmp_path / "copy"))
    scenario = (copy / "scenario.yaml").read_text()
    (copy / "scenario.yaml").write_text(scenario.replace("seed: 0", "seed: 1"))
    with pytest.raises(InputError, match=r"scenario.yaml: has sha256"):
        read_recorded_run(copy)
    write_checksums(copy)
    with pytest.raises(InputError, match="is not the scenario that was run"):
        read_recorded_run(copy)
    with pytest.raises(InputError, match="no results here"):
        read_recorded_run(tmp_path)


def test_a_folder_of_an_earlier_version_is_replayed_with_a_note(recorded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(recorded, tmp_path / "copy"))
    simulator = json.loads((copy / "summary.json").read_text())["simulator"]
    changed(copy / "summary.json", simulator={k: v for k, v in simulator.items() if k != "plugins"})
    (copy / SUMS_FILE).unlink()
    lines = [{"at_fs": at_fs, **command} for at_fs, command in read_commands(copy / "commands.jsonl")]
    (copy / "commands.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = pimserve(tmp_path, "run", "--replay", "copy", "--out", "again", "--quiet")
    assert done.returncode == 0
    assert "note: an earlier pimserve wrote copy, without checksums of its files" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"at_fs": 5, "command": "stop"}',
            ":2: command: must be one of change_scheduler, scale_rate, inject (got 'stop')",
        ),
        ('{"at_fs": 5}', ":2: command: must be one of change_scheduler, scale_rate, inject (got None)"),
        ('{"at_fs": 0, "command": "scale_rate", "factor": 2.0}', ":2: at_fs: must be greater than 0 (got 0)"),
        ('{"at_fs": 1.5, "command": "scale_rate", "factor": 2.0}', ":2: at_fs: must be a whole number (got 1.5)"),
        ('{"at_fs": 5, "command": "scale_rate", "factor": -1}', ":2: factor: must be greater than 0 (got -1)"),
        ('{"at_fs": 5, "command": "scale_rate", "factor": NaN}', ":2: factor: must be a finite number"),
        ('{"at_fs": 5, "command": "scale_rate", "speed": 2}', ":2: factor: is missing"),
        (
            '{"at_fs": 5, "command": "change_scheduler", "max_num_seqs": true}',
            ":2: max_num_seqs: must be a whole number",
        ),
        (
            '{"at_fs": 5, "command": "inject", "input_tokens": [1], "output_tokens": [1, 2], "delay_s": 0}',
            ":2: output_tokens must have as many entries as input_tokens, 1 (got 2)",
        ),
        ("[1]", ":2: must be a mapping of keys to values"),
        ("{", ":2: is damaged: it is no JSON"),
        (
            '{"at_fs": 5, "command": "scale_rate", "factor": 2.0, "crc32": "00000000"}',
            ":2: is damaged, or does not follow",
        ),
    ],
)
def test_a_line_that_is_no_command_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "commands.jsonl"
    file.write_bytes(encoded([(3, {"command": "scale_rate", "factor": 0.5})]) + line.encode() + b"\n")
    with pytest.raises(InputError) as refused:
        read_commands(file)
    assert str(refused.value).startswith(f"{file}{message}"), refused.value


def test_lines_that_are_lost_or_changed_places_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / "commands.jsonl"
    log = CommandLog(file=file)
    for at_fs in (5, 7, 9):
        log.taken(at_fs, {"command": "scale_rate", "factor": float(at_fs)})
    log.close()
    first, second, third = file.read_bytes().splitlines(keepends=True)
    assert len(read_commands(file)) == 3
    for content, number in (
        ([second, third], 1),
        ([first, third], 2),
        ([first, third, second], 2),
        ([first, first], 2),
    ):
        file.write_bytes(b"".join(content))
        with pytest.raises(InputError, match=rf"commands.jsonl:{number}: is damaged, or does not follow"):
            read_commands(file)
    file.write_bytes(first + second[:-1])
    with pytest.raises(InputError, match=r"commands.jsonl:2: is cut short"):
        read_commands(file)


def test_the_page_has_every_field_of_a_command(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "results.md").read_text(encoding="utf-8")
    for command, line in LINES.items():
        assert f"`{command}`" in page
        for field in line.model_fields:
            assert re.search(rf"^\| `{field}` \| (all|`{command}`) \|", page, re.MULTILINE), field
    (example,) = re.findall(r'^{"at_fs".*$', page, re.MULTILINE)
    (tmp_path / "commands.jsonl").write_text(example + "\n")
    assert read_commands(tmp_path / "commands.jsonl") == [(600 * 10**12, {"command": "scale_rate", "factor": 0.5})]


def test_figures_that_differ_are_named(recorded: Path) -> None:
    run_again = read_recorded_run(recorded)
    assert run_again.summary["simulator"]["plugins"] == {}
    summary = read_summary(recorded)
    run_again.compare(summary)
    with pytest.raises(PimserveError, match=r"the replay is not the run of .*: end_s in summary.json differ"):
        run_again.compare(summary.model_copy(update={"end_s": 1.0}))
