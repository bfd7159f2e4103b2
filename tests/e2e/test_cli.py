"""The installed command, as a user runs it: what goes where, exit codes, and never a traceback."""

import csv
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pimserve import __version__
from pimserve.device_models.catalogue import device_names, model_names
from tests.command import UNWANTED, pimserve

PIMSERVE = Path(sysconfig.get_path("scripts")) / "pimserve"
SMALL = ("--set", "workload.num_requests=40")

pytestmark = pytest.mark.e2e


@pytest.fixture
def pimserve_in(tmp_path):
    """Run `pimserve` in an empty folder, in this process."""

    def run(*arguments):
        done = pimserve(tmp_path, *arguments)
        assert "\x1b" not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def started_in(tmp_path):
    """The same in a process of its own."""

    def run(*arguments, **env):
        done = subprocess.run(
            [str(PIMSERVE), *arguments],
            cwd=tmp_path,
            env={**plain_env(), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "\x1b" not in done.stdout + done.stderr
        return done

    return run


def plain_env():
    return {key: value for key, value in os.environ.items() if key not in UNWANTED}


def strict_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def leftovers(folder):
    """All that lies in a folder, but for a `results` folder that another run may be about to use."""
    return [path for path in folder.rglob("*") if path != folder / "results"]


def ok(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("models",),
        ("run", "--set", "cluster.colour=red"),
        ("run", *SMALL, "--quiet", "--out", "\N{GREEK CAPITAL LETTER OMEGA}"),
    ],
)
def test_a_process_of_its_own_says_the_same(pimserve_in, started_in, tmp_path, arguments):
    here = pimserve_in(*arguments)
    shutil.rmtree(tmp_path / arguments[-1], ignore_errors=True)
    there = started_in(*arguments, PYTHONIOENCODING="utf-8")
    assert (there.returncode, there.stdout, there.stderr) == (here.returncode, here.stdout, here.stderr)


def test_version_and_help(pimserve_in):
    assert ok(pimserve_in("--version")) == f"pimserve {__version__}\n"
    shown = ok(pimserve_in("--help"))
    for command in ("run", "compare", "models", "devices", "schema", "validate", "export"):
        assert re.search(rf"^  {command} ", shown, re.MULTILINE)
    assert "--set PATH=VALUE" in ok(pimserve_in("run", "--help"))
    assert "duplex" in ok(pimserve_in("validate", "-h"))


def test_run_prints_the_report_and_writes_the_folder(pimserve_in, tmp_path):
    done = pimserve_in("run", *SMALL, "--set", "slo.ttft_s=2")
    shown = ok(done)
    assert done.stderr == ""
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("requests/s", "TTFT", "TPOT", "ITL", "E2E", "attainment", "goodput", "Logic-PIM", "MoE", "steps/s"):
        assert word in shown
    assert shown.splitlines()[-1] == "results in results/default"
    assert (tmp_path / "results" / "default" / "summary.json").is_file()


def test_json_is_alone_on_standard_output(pimserve_in, tmp_path):
    done = pimserve_in("run", *SMALL, "--json", "--out", "here")
    summary = strict_json(ok(done))
    assert summary["requests"]["total"] == 40
    assert summary["results"] == "here"
    assert done.stderr == "results in here\n"
    assert summary == strict_json((tmp_path / "here" / "summary.json").read_text())


def test_quiet_prints_the_folder_only(pimserve_in):
    done = pimserve_in("run", *SMALL, "--quiet")
    assert ok(done) == "results/default\n"
    assert done.stderr == ""
    assert ok(pimserve_in("run", *SMALL, "-q")) == "results/default-2\n"


def test_pools_whose_replicas_fail(pimserve_in):
    pools = "cluster.pools={prefill: {device: h100}, decode: {device: duplex, replicas: 2}, handover: {gb_per_s: 0.5}}"
    fails = "faults.events=[{at_s: 2, replica: 1, kind: fail, for_s: 1}, {at_s: 4, replica: 0, kind: fail, for_s: 1}]"
    settings = (pools, fails, "workload.arrival={process: poisson, rate_per_s: 10}")
    done = pimserve_in("run", *SMALL, *(part for setting in settings for part in ("--set", setting)))
    assert done.returncode == 0
    told = " ".join(done.stdout.split())
    (lost,), (again,) = (re.findall(rf"{what} (\d+)", told) for what in (" lost", "requests queued again"))
    assert int(again) >= int(lost) > 0
    assert "faults were simulated: 2 took place" in told


def test_saturation_is_said_beside_the_json(pimserve_in):
    overload = (
        "workload={num_requests: 400, arrival: {process: poisson, rate_per_s: 100}, "
        "lengths: {input: {kind: fixed, tokens: 2000}, output: {kind: fixed, tokens: 100}}}"
    )
    done = pimserve_in("run", "--set", overload, "--set", "scheduler.max_num_seqs=16", "--json")
    assert strict_json(ok(done))["stability"] == "saturated"
    assert "warning: saturated" in done.stderr


def test_overrides_and_scenario_file(pimserve_in, tmp_path):
    (tmp_path / "s.yaml").write_text("name: mine\ncluster: {device: h100}\nworkload: {num_requests: 30}\n")
    summary = strict_json(
        ok(pimserve_in("run", "s.yaml", "--set", "run.seed=5", "--set", "cluster.replicas=2", "--json"))
    )
    assert (summary["name"], summary["device"], summary["seed"], summary["replicas"]) == ("mine", "h100", 5, 2)


def test_trace(pimserve_in, tmp_path):
    (tmp_path / "t.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    summary = strict_json(ok(pimserve_in("run", "--trace", "azure:t.csv", "--json")))
    assert summary["tokens"]["prompt"] == 770
    assert summary["tokens"]["output"] == 153


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two finished runs, a and b."""
    folder = tmp_path_factory.mktemp("runs")
    for name, device in (("a", "duplex"), ("b", "h100")):
        ok(pimserve(folder, "run", *SMALL, "--set", f"cluster.device={device}", "--out", name, "-q"))
    return folder


def test_compare(pimserve_in, runs):
    shown = ok(pimserve_in("compare", runs / "a", runs / "b"))
    assert "B/A" in shown
    assert re.search(r"^cluster.device.name +duplex +h100$", shown, re.MULTILINE)
    document = strict_json(ok(pimserve_in("compare", runs / "a", runs / "b", "--json")))
    assert document["quantities"]["requests.total"]["ratios"] == [1.0, 1.0]
    assert document["differences"]["cluster.device.name"] == ["duplex", "h100"]
    assert all(path.startswith("cluster.device.") for path in document["differences"])


def test_export(pimserve_in, runs, tmp_path):
    rows = list(csv.DictReader(io.StringIO(ok(pimserve_in("export", runs / "a")))))
    assert len(rows) == 40
    assert {row["status"] for row in rows} == {"finished"}
    steps = list(csv.DictReader(io.StringIO(ok(pimserve_in("export", runs / "a", "--steps")))))
    assert len(steps) == strict_json((runs / "a" / "summary.json").read_text())["batch"]["steps"]
    done = pimserve_in("export", runs / "a", "--out", "requests.csv")
    assert ok(done) == ""
    assert done.stderr == "40 requests in requests.csv\n"
    assert len((tmp_path / "requests.csv").read_text().splitlines()) == 41
    again = pimserve_in("export", runs / "a", "--out", "requests.csv")
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_a_failed_export_leaves_no_file(pimserve_in, tmp_path):
    assert pimserve_in("export", "nothing", "--out", "x.csv").returncode == 2
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("command", "names"), [("models", model_names()), ("devices", device_names())])
def test_catalogue(pimserve_in, command, names):
    shown = ok(pimserve_in(command))
    assert set(names) <= set(shown.split())
    assert [entry["name"] for entry in strict_json(ok(pimserve_in(command, "--json")))] == names
    assert ok(pimserve_in(command, names[0])).startswith(f"{names[0]}: ")
    assert strict_json(ok(pimserve_in(command, names[0], "--json")))["sources"]


def test_schema_describes_the_scenario(pimserve_in):
    schema = strict_json(ok(pimserve_in("schema")))
    assert {"model", "cluster", "scheduler", "workload", "slo"} <= set(schema["properties"])


def test_validate_says_what_is_met_and_missed(pimserve_in, tmp_path):
    target = {
        "case": {"model": "Mixtral", "cluster": "1 node x 4 devices", "batch": 32, "Lin": 256, "Lout": 256}
        | {"system": "Duplex", "baseline": "GPU", "figure": 11},
        "quantity": "throughput ratio",
        "tolerance": 0.1,
        "tolerance_kind": "rel",
        "provenance": "test",
    }
    file = tmp_path / "targets.json"
    file.write_text(json.dumps({"targets": [{**target, "id": "met", "published": 2.09}]}))
    assert "1 of 1 figures met" in ok(pimserve_in("validate", "duplex", "--targets", file))
    file.write_text(json.dumps({"targets": [{**target, "id": "off", "published": 9.0}]}))
    done = pimserve_in("validate", "duplex", "--targets", file)
    assert done.returncode == 1
    assert "missed: off" in done.stdout
    found = pimserve_in("validate", "duplex", "--targets", file, "--json")
    assert found.returncode == 1
    assert [(each["id"], each["passed"]) for each in strict_json(found.stdout)] == [("off", False)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.yaml"], "absent.yaml: no such file"),
        (["run", "."], "is a folder"),
        (["run", "--set", "replicas"], "must be path=value"),
        (["run", "--set", "cluster.replicas=0", "--set", "run.seed=-1"], "cluster.replicas"),
        (["run", "--set", "cluster.colour=red"], "cluster.colour: unknown key"),
        (["run", "--set", "cluster.device=h1000"], "did you mean h100"),
        (["run", "--trace", "azure:absent.csv"], "absent.csv"),
        (["run", "--out", "."], "exists already"),
        (["run", "--out", "/proc/none/here"], "cannot be written"),
        (["run", "--fast"], "--fast"),
        (["rnu"], "Did you mean 'run'"),
        (["compare", "a"], "two runs"),
        (["compare", "a", "b"], "no results here"),
        (["export", "a"], "has no requests.npy"),
        (["models", "mixtral"], "did you mean"),
        (["devices", "../secrets"], "unknown device"),
        (["validate", "duplex", "--targets", "absent.json"], "absent.json"),
        (["validate", "triplex"], "triplex"),
    ],
)
def test_mistakes_are_explained(pimserve_in, arguments, message, tmp_path):
    done = pimserve_in(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "error: " in done.stderr.lower()
    assert done.stdout == ""
    assert leftovers(tmp_path) == []


def test_several_mistakes_are_listed_at_once(pimserve_in):
    lines = pimserve_in("run", "--set", "cluster.replicas=0", "--set", "run.seed=-1").stderr.splitlines()
    assert [line[:7] for line in lines] == ["error: ", "       "]


def test_a_reader_that_leaves_is_no_error(runs):
    with subprocess.Popen(
        [str(PIMSERVE), "export", str(runs / "a"), "--steps"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["models"], ["schema"], ["--help"]])
def test_a_full_disk_is_one_message(command):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([str(PIMSERVE), *command], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device\n"


def test_a_closed_standard_output_is_no_error():
    done = subprocess.run(f"'{PIMSERVE}' models >&-", shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_that_the_terminal_cannot_show(started_in):
    shown = ok(started_in("run", *SMALL, "--out", "\N{GREEK CAPITAL LETTER OMEGA}", PYTHONIOENCODING="latin-1"))
    assert shown.endswith("results in \\u03a9\n")


FAULT = (
    "import pimserve.cluster.cli.listing as l, sys; l.describe_model = lambda name: 1 / 0; sys.argv[0] = 'pimserve'; "
)


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_our_own_is_one_message(debug):
    code = f"{FAULT}from pimserve.cluster.cli.main import main; main()"
    env = plain_env() | ({"PIMSERVE_DEBUG": "1"} if debug else {})
    done = subprocess.run([sys.executable, "-c", code, "models"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "error: internal error: ZeroDivisionError: division by zero" in done.stderr
    assert "PIMSERVE_DEBUG=1" in done.stderr
    assert ("Traceback" in done.stderr) == debug


def on_a_terminal(arguments, cwd, columns, **env):
    """What a terminal of that many columns receives."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [str(PIMSERVE), *arguments],
        cwd=cwd,
        env={**plain_env(), "TERM": "xterm-256color", "COLUMNS": str(columns), **env},
        stdin=child,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    received = b""
    while True:
        try:
            block = os.read(parent, 4096)
        except OSError:  # Linux reports the end of a pseudo-terminal so
            break
        if not block:
            break
        received += block
    os.close(parent)
    assert process.wait(timeout=60) == 0
    return received.decode()


@pytest.mark.parametrize("columns", [80, 120])
def test_progress_shows_on_a_terminal_and_goes(tmp_path, columns):
    received = on_a_terminal(["run", "--set", "workload.num_requests=2000"], tmp_path, columns)
    assert "/2000" in received
    assert "\x1b[2K" in received  # the bar's line is wiped
    report = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", received[received.rindex("\x1b[2K") :])
    assert "TTFT" in report
    assert max(map(len, report.splitlines())) <= columns
    assert "\x1b[?25h" in received  # the cursor is back


def test_no_color_is_respected(tmp_path):
    received = on_a_terminal(["models"], tmp_path, 80, NO_COLOR="1")
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d", received)


def test_quiet_shows_no_progress(tmp_path):
    assert on_a_terminal(["run", *SMALL, "-q"], tmp_path, 80).strip() == "results/default"
