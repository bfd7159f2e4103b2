"""A real Prometheus: it scrapes a run at 60 times its time, gets others backfilled, and answers every panel's query."""

import json
import math
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

from pimserve.cluster.metrics.families import BY_NAME, bounds
from pimserve.cluster.results import load_table
from tests.deploy.queries import ROOT, panel_queries, rules, substituted

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
# Panels that only some runs have figures for: what the run must be, or what must happen.
NEEDS = {
    "Crossbar tiers in use": "aimc",
    "Link": "duplex",
    "Scrapes that succeed": "live",
    "Waiting": "live",
    "Windows per wall-clock second": "live",
    "Steps per wall-clock second": "live",
    "run:pimserve_requests_waiting:sum": "live",
    "Hosts replaced": "live",
    "Spans audited": "live",
    "Memory": "live",
}
# Alerts say nothing while all is well.
QUIET = {"alerts.yml"}
SLO = ["slo={ttft_s: 0.05, tpot_s: 0.005, e2e_s: 2}"]


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
    answer = json.loads(get(f"{base}/api/v1/query?{urllib.parse.urlencode(parameters)}"))
    assert answer["status"] == "success", query
    return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]


def finite(found):
    return bool(found) and all(math.isfinite(value) for _, value in found)


def check_every_query(base, at, window, kind):
    """Every panel and recording rule has figures, and only figures."""
    for place, name, expr in [*panel_queries(), *rules()]:
        needs = NEEDS.get(name)
        if place in QUIET or (needs is not None and needs not in kind):
            continue
        query = substituted(expr, window).replace("[1m]", f"[{window}]").replace("[5m]", f"[{window}]")
        found = ask(base, query, at)
        if name == "Preemptions per second" or place == "recording.yml":
            assert all(math.isfinite(value) for _, value in found), (place, name, query)
        else:
            assert finite(found), (place, name, query, found)


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
        edges = [0.0, *bounds(BY_NAME[name], limits)]
        bucket = int(np.searchsorted(edges, theirs))
        (_, ours), *_ = ask(base, f"histogram_quantile(0.99, sum by (le) ({name}_bucket{of}))", at)
        assert edges[bucket - 1] <= ours <= edges[bucket], (name, theirs, ours)


def test_finished_runs_backfilled(tmp_path):
    kinds = {"duplex": [], "aimc": ["cluster={device: aimc-realistic, devices_per_node: 6}"]}
    folders = []
    for name, overrides in kinds.items():
        settings = [*overrides, *SLO, "workload.num_requests=400", "workload.arrival.rate_per_s=4"]
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
            # Per second of simulated time, whatever the window.
            requests = load_table(folder, "requests")
            done = ((requests["finish_ps"] > 20e12) & (requests["finish_ps"] <= 60e12)).sum() / 40
            query = (
                f'sum(rate(pimserve_requests_total{{run_id="{folder.name}",outcome="finished"}}[40s])) '
                f'/ sum(rate(pimserve_virtual_time_seconds_total{{run_id="{folder.name}"}}[40s]))'
            )
            assert ask(base, query, epoch + 60)[0][1] == pytest.approx(done, rel=0.06)
        check_every_query(base, loaded["duplex"]["epoch_s"] + 60, "30s", kind={"aimc", "duplex"})
        page = get(f"{base}/consoles/index.html")
        assert page is not None
        for name in kinds:
            assert f"<td>{name}</td>" in page
        assert "NaN" not in page
        assert "error" not in page.lower()


def test_a_paced_run_scraped(tmp_path):
    port = free_port()
    out = tmp_path / "live"
    settings = [*SLO, "cluster.replicas=2", "workload.num_requests=900", "workload.arrival.rate_per_s=10"]
    command = [PIMSERVE, "run", "--quiet", "--out", str(out), "--speed", "6x"]
    command += ["--metrics", f"127.0.0.1:{port}", "--metrics-linger", "4"]
    command += [part for each in settings for part in ("--set", each)]
    with prometheus(tmp_path / "data", f"127.0.0.1:{port}") as base:
        began = time.monotonic()
        run = subprocess.Popen(command, stdout=sys.stderr)
        # A rate needs some samples; the first scrape comes some seconds after Prometheus has begun.
        until(lambda: ask(base, "count_over_time(pimserve_virtual_time_seconds_total[1m]) >= 8"))
        until(lambda: ask(base, 'sum(pimserve_requests_total{outcome="finished"}) > 200'))
        assert time.monotonic() - began < 60
        now = time.time()
        check_every_query(base, now, "6s", kind={"duplex", "live"})
        # At 6 times the wall clock, per simulated second: 10 requests, of which few samples say about 10.
        rate = substituted(
            next(expr for _, title, expr in panel_queries() if title == "Requests finished per second"), "10s"
        )
        assert 5 < ask(base, rate, now)[0][1] < 20
        assert ask(base, 'up{job="pimserve"}')[0][1] == 1
        assert run.wait(120) == 0
        last = ask(base, "max(timestamp(pimserve_requests_expected))", time.time() - 2)
        same_as_the_summary(base, "live", out, last[0][1])
        for rule in ("run:pimserve_generation_tokens:per_virtual_second", "run:pimserve_virtual_time:rate1m"):
            assert finite(ask(base, f"max_over_time({rule}[1m])"))
