"""A real Prometheus: it scrapes a run at 6 times its time, gets others backfilled, and answers every panel's query."""

import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from pimserve.cluster.metrics.backfill import write_moments
from pimserve.cluster.metrics.families import BY_NAME
from pimserve.cluster.metrics.family import bounds
from pimserve.cluster.metrics.replay import replay
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.run.history import History
from pimserve.cluster.run.results import load_table
from tests.deploy.queries import ROOT, boards, panel_queries, rules, substituted, written_out

PIMSERVE = str(Path(sysconfig.get_path("scripts")) / "pimserve")
PROMETHEUS = ROOT / "deploy/prometheus"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="Prometheus is not installed (Debian package prometheus)",
    ),
]
# Panels and rules that only some runs have figures for. Crossbar chips have no link between devices but their tiles;
# results do not tell of the wall clock, of windows and of processes.
NEEDS = {
    "aimc": {"Crossbar tiers in use"},
    "duplex": {"Link"},
    "mixed": {
        "What attention's devices wait for",
        "What the experts' devices wait for",
        "Working",
        "Tokens between the groups",
        "Busy share of the link between the groups",
        "Devices of each group",
        "Weights in each device of a group",
    },
    "stages": {
        "Arrival rate of each stage",
        "Requests of each stage",
        "SLO attainment of each stage",
        "Time to first token by stage, p99",
        "Time per output token by stage, p99",
        "End-to-end latency by stage, p99",
        "Queue time by stage, p99",
    },
    "classes": {
        "Classes",
        "Requests of each class",
        "SLO attainment of each class",
        "Time to first token by class, p99",
        "Time per output token by class, p99",
        "End-to-end latency by class, p99",
        "Queue time by class, p99",
        "Percentiles over their limits of each class",
        "Margins to limits at percentiles of each class",
        "Limits at percentiles that are kept of each class",
    },
    "router": {"Requests routed by reason", "Requests routed to each replica"},
    "prefix cache": {"Hit ratio", "Cached blocks", "Cached blocks evicted per second"},
    "tiers": {
        "Hit ratio of tiers",
        "Moved per second",
        "Links of tiers busy",
        "Tiers in use",
        "Blocks in tiers",
        "Blocks in tiers evicted per second",
        "Wait for blocks from tiers",
    },
    "drafts": {"Acceptance length", "Acceptance rate"},
    "live": {
        "Scrapes that succeed",
        "Steps per wall-clock second",
        "Windows per wall-clock second",
        "Hosts replaced",
        "Spans audited",
        "Memory",
    },
}
SLO = ["slo={ttft_s: 0.05, tpot_s: 0.005, e2e_s: 2, ttft_p99_s: 0.05}"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def prometheus(folder, target=None):
    """A Prometheus on its own port; yields a function that asks it."""
    port = free_port()
    config = {"rule_files": [str(PROMETHEUS / "rules/recording.yml"), str(PROMETHEUS / "rules/alerts.yml")]}
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    if target is not None:
        config["scrape_configs"] = [{"job_name": "pimserve", "static_configs": [{"targets": [target]}]}]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{folder.name}.yml"
    file.write_text(yaml.safe_dump(config))
    command = [
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--web.console.templates={PROMETHEUS / 'consoles'}",
        f"--web.console.libraries={PROMETHEUS / 'consoles'}",
    ]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        until(lambda: get(f"{base}/-/ready"))
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return None


def until(condition, patience_s=60):
    end = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)
    return found


def ask(base, query, at=None):
    """(labels, value) of each series of an instant query."""
    parameters = {"query": query} if at is None else {"query": query, "time": f"{at:.3f}"}
    answer = get(f"{base}/api/v1/query?{urllib.parse.urlencode(parameters)}")
    assert answer is not None, query
    return [(each["metric"], float(each["value"][1])) for each in json.loads(answer)["data"]["result"]]


def check_every_query(base, at, window, kinds):
    """Every panel and recording rule has figures if runs of these kinds are there; no query has one that is none."""
    for place, name, expr in [*panel_queries(), *rules()]:
        query = re.sub(r"\[\d+m(:?)\]", rf"[{window}\1]", substituted(written_out(expr), window))
        found = ask(base, query, at)
        assert all(math.isfinite(value) for _, value in found), (place, name, query, found)
        # Alerts say nothing while all is well.
        if place != "alerts.yml" and all(kind in kinds for kind, names in NEEDS.items() if name in names):
            assert found, (place, name, query)


def check_variables(base):
    """What Grafana would offer for runs, replicas and roles."""
    for name, board in boards().items():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                of, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
                match = urllib.parse.urlencode({"match[]": substituted(of)})
                found = json.loads(get(f"{base}/api/v1/label/{label}/values?{match}"))["data"]
                assert found, (name, variable["name"])


def samples_of(base, query, at):
    """(timestamp, value) of the only series of a range."""
    parameters = urllib.parse.urlencode({"query": query, "time": f"{at:.3f}"})
    (series,) = json.loads(get(f"{base}/api/v1/query?{parameters}"))["data"]["result"]
    return {time_s: float(value) for time_s, value in series["values"]}


def panel_query(board, title):
    """The first query of a panel."""
    return next(expr for name, panel, expr in panel_queries() if (name, panel) == (f"pimserve-{board}.json", title))


def same_as_the_summary(base, run_id, folder, at):
    """Counts are those of the summary, and the p99 lies in the same bucket."""
    summary = json.loads((folder / "summary.json").read_text())
    of = f'{{run_id="{run_id}"}}'
    assert (
        ask(base, f'sum(pimserve_requests_total{{run_id="{run_id}",outcome="finished"}})', at)[0][1]
        == (summary["requests"]["finished"])
    )
    assert ask(base, f"sum(pimserve_generation_tokens_total{of})", at)[0][1] == summary["tokens"]["output"]
    assert ask(base, f"sum(pimserve_steps_total{of})", at)[0][1] == summary["batch"]["steps"]
    limits = summary["slo"]["limits"]
    for name, key in (
        ("pimserve_time_to_first_token_seconds", "ttft"),
        ("pimserve_time_per_output_token_seconds", "tpot"),
        ("pimserve_e2e_request_latency_seconds", "e2e"),
    ):
        theirs = summary["latency_s"][key]["p99"]
        edges = [0.0, *bounds(BY_NAME[name], {key: [limit] for key, limit in limits.items()})]
        bucket = int(np.searchsorted(edges, theirs))
        (_, ours), *_ = ask(base, f"histogram_quantile(0.99, sum by (le) ({name}_bucket{of}))", at)
        assert edges[bucket - 1] <= ours <= edges[bucket], (name, theirs, ours)


@pytest.mark.deep
def test_finished_runs_backfilled(tmp_path):
    kinds = {
        "duplex": [],
        "aimc": ["cluster={device: aimc-realistic, devices_per_node: 6}"],
        "mixed": ["cluster={devices_per_node: 2, placement: {experts: {device: h100}}}"],
        "stages": ["workload.arrival={stages: [{rate_per_s: 3, duration_s: 60}, {rate_per_s: 5, duration_s: 60}]}"],
        "classes": ["workload.classes=[{name: chat, share: 3}, {name: batch, slo: {e2e_s: 20, e2e_p90_s: 20}}]"],
    }
    folders = []
    for name, overrides in kinds.items():
        settings = [*SLO, "workload.num_requests=400", "workload.arrival.rate_per_s=4", *overrides]
        command = [PIMSERVE, "run", "--quiet", "--out", str(tmp_path / name)]
        subprocess.run([*command, *(part for each in settings for part in ("--set", each))], check=True)
        folders.append(tmp_path / name)
    data = tmp_path / "data"
    subprocess.run([PIMSERVE, "metrics", "backfill", *map(str, folders), "--into", str(data)], check=True)
    loaded = json.loads((data / "pimserve.json").read_text())
    with prometheus(data) as base:
        for folder in folders:
            epoch, end_s = loaded[folder.name]["epoch_s"], loaded[folder.name]["end_s"]
            same_as_the_summary(base, folder.name, folder, epoch + end_s + 1)
            throughput = json.loads((folder / "summary.json").read_text())["throughput"]
            whole = ask(
                base, substituted(panel_query("comparison", "Output tokens per second"), run=folder.name), epoch + end_s
            )
            assert whole[0][1] == pytest.approx(throughput["output_tokens_per_s"], rel=1e-9)
            # From 20 s to 60 s, per second of simulated time.
            requests = load_table(folder, "requests")
            done = ((requests["finish_ps"] > 20e12) & (requests["finish_ps"] <= 60e12)).sum() / 40
            query = substituted(panel_query("overview", "Requests finished per second"), "40s", folder.name)
            assert ask(base, query, epoch + 60)[0][1] == pytest.approx(done, rel=1e-9)
        check_every_query(base, loaded["duplex"]["epoch_s"] + 60, "30s", kinds=set(kinds))
        check_variables(base)
        page = get(f"{base}/consoles/index.html")
        assert page is not None
        for name in kinds:
            assert f"<td>{name}</td>" in page
        assert "NaN" not in page
        assert "error" not in page.lower()


def test_runs_that_have_not_begun_or_are_held_have_no_rates(tmp_path):
    """Nothing is divided by the growth of a clock that stands still, nor by samples that there are none of."""
    command = [PIMSERVE, "run", "--quiet", "--out", str(tmp_path / "run"), "--set", "workload.num_requests=50"]
    subprocess.run([*command, *(part for each in SLO for part in ("--set", each))], check=True)
    epoch, history = 1_760_000_000, History.load(tmp_path / "run")
    fresh = metrics_of(history.prepared, "fresh")
    held = next(replay(history, "held", [history.end_s / 2])).copy()
    with (tmp_path / "runs.om").open("w") as file:
        write_moments([[(epoch + second, run) for second in range(90)] for run in (fresh, held)], file)
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", tmp_path / "runs.om", tmp_path / "data"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with prometheus(tmp_path / "data") as base:
        for run in ("fresh", "held"):
            for place, name, expr in panel_queries():
                query = substituted(expr, "30s", run)
                found = ask(base, query, epoch + 80)
                assert all(math.isfinite(value) for _, value in found), (run, place, name, found)
                assert not found or "rate(" not in query, (run, place, name, found)
        assert ask(base, substituted(panel_query("comparison", "Finished"), run="held"), epoch + 80)[0][1] > 0


def test_a_paced_run_scraped(tmp_path):
    port = free_port()
    out = tmp_path / "live"
    settings = [*SLO, "cluster.replicas=2", "workload.num_requests=1200", "workload.arrival.rate_per_s=10"]
    tiers = "[{name: host, capacity_gb: 1, gb_per_s: 2, write: back}]"
    settings += [f"scheduler={{enable_prefix_caching: true, kv_blocks: 900, kv_tiers: {tiers}}}"]
    settings += ["workload.prefix={groups: 9, shared_tokens: 600}"]
    command = [PIMSERVE, "run", "--quiet", "--out", str(out), "--speed", "6x"]
    command += ["--metrics", f"127.0.0.1:{port}", "--metrics-linger", "4"]
    command += [part for each in settings for part in ("--set", each)]
    with prometheus(tmp_path / "data", f"127.0.0.1:{port}") as base:
        run = subprocess.Popen(command, stdout=sys.stderr)
        try:
            # A rate needs some samples; the first scrape comes some seconds after Prometheus has begun.
            until(lambda: ask(base, "count_over_time(pimserve_virtual_time_seconds_total[1m]) >= 9"))
            until(lambda: ask(base, 'sum(pimserve_requests_total{outcome="finished"}) > 450'))
            now = time.time()
            page = get(f"{base}/consoles/index.html")
            # At that time, as the run may be over before all is asked.
            assert ask(base, 'up{job="pimserve"}', now)[0][1] == 1
            check_every_query(base, now, "6s", kinds={"duplex", "live", "router", "prefix cache", "tiers"})
            check_variables(base)
            per_second = ask(base, substituted(panel_query("overview", "Requests finished per second"), "6s"), now)
            assert run.wait(120) == 0
        finally:
            run.kill()
            run.wait()
        assert "<td>live</td>" in page
        # However long the checks above took: the last scrape, after which the series are marked stale.
        last = max(samples_of(base, "pimserve_requests_expected[5m]", time.time()))
        same_as_the_summary(base, "live", out, last)
        # Each scrape is of one moment of simulated time, at which as many requests had finished, or will with the step
        # that is under way: a window runs the steps that begin in it.
        finish_s = np.sort(load_table(out, "requests")["finish_ps"] / 1e12)
        steps = load_table(out, "steps")
        longest_s = float((steps["duration_fs"] / steps["steps"]).max()) / 1e15
        finished = samples_of(base, 'pimserve_requests_total{outcome="finished"}[2m]', last)
        clock = samples_of(base, "pimserve_virtual_time_seconds_total[2m]", last)
        assert len(clock) >= 10
        for moment, seconds in clock.items():
            earliest, latest = np.searchsorted(finish_s, [seconds, seconds + longest_s], side="right")
            assert earliest <= finished[moment] <= latest
        # So the panel's rate is that of the requests between two scrapes, at 6 times the wall clock as at any pace.
        first, *_, end = (moment for moment in clock if now - 6 <= moment <= now)
        done = finished[end] - finished[first]
        assert per_second[0][1] == pytest.approx(done / (clock[end] - clock[first]), rel=1e-9)
        # All rules were evaluated, and the recorded ones have figures.
        groups = json.loads(get(f"{base}/api/v1/rules"))["data"]["groups"]
        found = {
            rule["name"]: (rule["health"], rule.get("lastError", "")) for group in groups for rule in group["rules"]
        }
        assert found == dict.fromkeys((name for _, name, _ in rules()), ("ok", ""))
        for name in (name for place, name, _ in rules() if place == "recording.yml"):
            values = [value for _, value in ask(base, f"max_over_time({name}[2m])", last)]
            assert values, name
            assert all(map(math.isfinite, values)), name
