"""`pimserve run --metrics`: a paced run, scraped while it goes and once more after its end."""

import json
import os
import re
import subprocess
import sysconfig
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.command import pimserve

PIMSERVE = Path(sysconfig.get_path("scripts")) / "pimserve"
SCENARIO = ("--set", "workload.num_requests=60", "--set", "slo={ttft_s: 0.03, tpot_s: 0.004}")

pytestmark = pytest.mark.e2e


def scrape(address, token):
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def total(samples, name, **labels):
    return sum(value for (found, *given), value in samples.items() if found == name and labels.items() <= set(given))


def test_a_paced_run_is_scraped_and_ends_as_its_summary_says(tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length\n")
    token.chmod(0o600)
    options = ("--speed", "6x", "--metrics", "127.0.0.1:0", "--metrics-linger", "600", "--metrics-token-file", token)
    command = [PIMSERVE, "run", *SCENARIO, "--out", tmp_path / "watched", *options, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            said = process.stderr.readline()
            address = re.fullmatch(r"metrics on (127\.0\.0\.1:\d+)\n", said)[1]
            seen = [scrape(address, "a-token-of-some-length")]
            until = time.monotonic() + 60
            while not (tmp_path / "watched" / "summary.json").exists():
                assert time.monotonic() < until
                time.sleep(0.2)
                seen.append(scrape(address, "a-token-of-some-length"))
            # The summary is printed before the endpoint lingers: it need not be waited for.
            summary = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
            last = scrape(address, "a-token-of-some-length")
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert len(seen) > 3
    assert all(set(samples) == set(last) for samples in seen)
    clock = [total(samples, "pimserve_virtual_time_seconds_total") for samples in [*seen, last]]
    assert clock == sorted(clock)
    assert len(set(clock)) > 3
    assert summary == json.loads((tmp_path / "watched" / "summary.json").read_text())
    assert total(last, "pimserve_requests_total", outcome="finished", run_id="watched") == 60
    assert total(last, "pimserve_generation_tokens_total") == summary["tokens"]["output"]
    assert total(last, "pimserve_steps_total") == summary["batch"]["steps"]
    assert total(last, "pimserve_sim_events_total") == len(np.load(tmp_path / "watched" / "steps.npy", mmap_mode="r"))
    met, missed = (total(last, "pimserve_slo_requests_total", slo="all", result=each) for each in ("met", "missed"))
    assert met / (met + missed) == pytest.approx(summary["slo"]["attainment"])
    assert 0 < met < 60


def test_options_of_metrics_without_a_place_are_refused(tmp_path):
    for command, *option in (
        ("run", "--metrics-linger", "5"),
        ("run", "--metrics-per-engine"),
        ("serve", "--metrics-token-file", "token"),
        ("serve", "--metrics-per-engine"),
    ):
        done = pimserve(tmp_path, command, *option)
        assert done.returncode == 2
        assert done.stderr.startswith("error: --metrics: is missing")
    assert os.listdir(tmp_path) == []
