"""Routers of other packages: one that is installed is used, and one that does wrong is named."""

import os
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from pimserve.cluster.cli.signals import handle_signals
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError, Terminated
from pimserve.scheduler.router import make_router
from pimserve.scheduler.router_protocol import restore_router, router_state
from tests.cluster.documents import run

EXAMPLE = Path(__file__).parents[2] / "example_router"
SCENARIO = [
    *("model=llama-3.1-8b", "cluster.device=h100", "cluster.devices_per_node=1", "cluster.replicas=3"),
    "workload={arrival: {process: poisson, rate_per_s: 50}, num_requests: 60, "
    "lengths: {input: {kind: fixed, tokens: 500}, output: {kind: fixed, tokens: 20}}}",
]

# Modules of routers that do wrong, and what is said.
ALLOWED = "a whole number from 0 to 2, one of the replicas it was shown, is needed"
WRONG = {
    "return 99": f"picked 99; {ALLOWED}",
    "return 3": f"picked 3; {ALLOWED}",
    "return -1": f"picked -1; {ALLOWED}",
    "return 1.0": f"picked 1.0; {ALLOWED}",
    "return True": f"picked True; {ALLOWED}",
    "return None": f"picked None; {ALLOWED}",
    "return 'first'": f"picked 'first'; {ALLOWED}",
    "raise RuntimeError('no idea')": "failed to pick a replica: RuntimeError: no idea",
    "raise SystemExit(3)": "failed to pick a replica: SystemExit: 3",
    "outstanding[0] = 5": "failed to pick a replica: TypeError: 'tuple' object does not support item assignment",
}


def install(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    source: Path,
    targets: dict[str, str],
    group: str = "pimserve.routers",
) -> None:
    """As pip does: metadata with the entry points, beside the modules, on the path of this process and its children."""
    metadata = folder / "installed" / f"{source.name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {source.name}\nVersion: 1.0\n")
    points = "".join(f"{name} = {target}\n" for name, target in targets.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{points}")
    monkeypatch.syspath_prepend(str(source))
    monkeypatch.syspath_prepend(str(folder / "installed"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "installed"), str(source), *sys.path]))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install(monkeypatch, tmp_path, EXAMPLE, project["entry-points"]["pimserve.routers"])


def broken(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    body: str,
    name: str = "broken",
    method: str = "pick(self, outstanding)",
) -> None:
    source = folder / f"{name}_router"
    source.mkdir()
    (source / f"{name}.py").write_text(f"class Router:\n    def {method}:\n        {body}\n")
    monkeypatch.delitem(sys.modules, name, raising=False)
    install(monkeypatch, folder, source, {"mine": f"{name}:Router"})


@pytest.mark.usefixtures("example")
def test_an_installed_router_is_found_and_used(tmp_path: Path) -> None:
    assert "two_choices" in entry_points(group="pimserve.routers").names
    spread = run(prepare(load_scenario(None, [*SCENARIO, "scheduler.router=two_choices"])), tmp_path / "two")
    again = run(prepare(load_scenario(tmp_path / "two" / "scenario.yaml")), tmp_path / "again")
    assert again["digest"] == spread["digest"]
    assert spread["digest"] != run(prepare(load_scenario(None, SCENARIO)), tmp_path / "turns")["digest"]
    assert spread["requests"]["finished"] == 60
    assert spread["simulator"]["plugins"] == {"pimserve.routers:two_choices": f"{EXAMPLE.name} 1.0"}


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("report", [0, 0.1], ids=["exact state", "reports"])
def test_one_sees_what_the_routers_here_see(tmp_path: Path, report: float) -> None:
    scenario = [*SCENARIO, f"scheduler.report_interval_s={report}", "workload.num_requests=12"]
    mine = run(prepare(load_scenario(None, [*scenario, "scheduler.router=shortest_queue"])), tmp_path / "mine")
    assert mine["requests"]["finished"] == 12
    kept = run(
        prepare(load_scenario(None, [*scenario, "scheduler.router=shortest_queue"])),
        tmp_path / "kept",
        checkpoints=tmp_path / "state",
    )
    assert kept["digest"] == mine["digest"]


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("report", [0, 0.1], ids=["exact state", "reports"])
def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, report: float) -> None:
    scenario = load_scenario(None, [*SCENARIO, "scheduler.router=two_choices", f"scheduler.report_interval_s={report}"])
    kept = run(prepare(scenario), tmp_path / "kept", checkpoints=tmp_path / "state")
    assert kept["digest"] == run(prepare(scenario), tmp_path / "plain")["digest"]
    router = make_router("two_choices")
    assert router is not None
    before = [router.pick([3, 1, 2, 0]) for _ in range(20)]
    other = make_router("two_choices")
    restore_router(other, router_state(router))
    after = [router.pick([3, 1, 2, 0]) for _ in range(20)]
    assert other is not None
    assert [other.pick([3, 1, 2, 0]) for _ in range(20)] == after != before


@pytest.mark.parametrize("report", [0, 0.1], ids=["exact state", "reports"])
@pytest.mark.parametrize("body", WRONG)
def test_one_that_does_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, report: float
) -> None:
    broken(monkeypatch, tmp_path, body)
    settings = [*SCENARIO, "scheduler.router=mine", f"scheduler.report_interval_s={report}"]
    with pytest.raises(InputError) as refused:
        run(prepare(load_scenario(None, settings)), tmp_path / "r")
    assert str(refused.value) == f"scheduler.router: router 'mine' of broken:Router {WRONG[body]}"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("report", [0, 0.1], ids=["exact state", "reports"])
@pytest.mark.parametrize(
    "body",
    [body for body in WRONG if not body.startswith("outstanding")]
    + ["replicas[0] = replicas[1]", "replicas[0].outstanding = 5"],
)
def test_one_that_sees_more_and_does_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, report: float
) -> None:
    broken(monkeypatch, tmp_path, body, method="route(self, request, replicas)")
    settings = [*SCENARIO, "scheduler.router=mine", f"scheduler.report_interval_s={report}"]
    with pytest.raises(InputError) as refused:
        run(prepare(load_scenario(None, settings)), tmp_path / "r")
    said = WRONG.get(body, "failed to pick a replica: ")
    assert str(refused.value).startswith(f"scheduler.router: router 'mine' of broken:Router {said}")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_package:Router", "does not load: ModuleNotFoundError: No module named 'no_such_package'"),
        ("broken:Other", "does not load: AttributeError: module 'broken' has no attribute 'Other'"),
        ("broken:Router.pick", "does not load: TypeError: "),
        ("builtins:dict", "has neither a method `route(request, replicas)` nor `pick(outstanding)`"),
    ],
)
def test_one_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str) -> None:
    broken(monkeypatch, tmp_path, "return 0")
    install(monkeypatch, tmp_path / "more", tmp_path / "broken_router", {"other": target})
    with pytest.raises(InputError) as refused:
        make_router("other")
    assert str(refused.value).startswith(f"scheduler.router: router 'other' of {target} {message}")


def test_one_that_ends_the_program_as_it_loads_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, tmp_path, "return 0\nraise SystemExit(3)", "leaving")
    with pytest.raises(InputError, match="router 'mine' of leaving:Router does not load: SystemExit: 3"):
        make_router("mine")


@pytest.mark.parametrize(("number", "stop"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_being_told_to_stop_is_no_fault_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, stop: type[BaseException]
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    broken(monkeypatch, tmp_path, f"import signal; signal.raise_signal({int(number)})", f"held_{int(number)}")
    router = make_router("mine")
    assert router is not None
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in its background
    handle_signals()
    try:
        with pytest.raises(stop):
            router.pick([0])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_state_that_cannot_be_kept_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, tmp_path, "return 0\n    def state(self):\n        return {1, 2}", "forgetful")
    with pytest.raises(InputError, match="router 'mine' of forgetful:Router failed to tell its state, which must be"):
        router_state(make_router("mine"))


@pytest.mark.e2e
@pytest.mark.parametrize(
    "where", [[], pytest.param(["--on", "processes"], marks=pytest.mark.slow)], ids=["local", "processes"]
)
def test_the_command_ends_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: list[str]
) -> None:
    broken(monkeypatch, tmp_path, "return 99")
    settings = [option for each in [*SCENARIO, "scheduler.router=mine"] for option in ("--set", each)]
    done = subprocess.run(
        [sys.executable, "-m", "pimserve.cluster.cli.main", "run", *settings, *where, "--out", str(tmp_path / "r")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert f"scheduler.router: router 'mine' of broken:Router picked 99; {ALLOWED}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()
