"""A run that another process exposes: the same as if it did so itself, and gone with it."""

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pimserve.cluster.metrics import exporter
from pimserve.cluster.metrics.endpoint import EndpointOptions, exposing
from pimserve.cluster.metrics.exporter import exporting
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError

pytestmark = pytest.mark.server

LISTENS = 'import signal, sys, time; sys.stdin.readline(); print(\'{"address": "here"}\', flush=True); '
LOCAL = EndpointOptions("127.0.0.1:0")
TOKEN = EndpointOptions("127.0.0.1:0", "a-token-of-some-length")


def empty():
    return metrics_of(prepare(load_scenario(None, ["cluster.replicas=2", "slo.ttft_s=0.3"])), "r")


def get(address, path="/metrics", **headers):
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


def gone(address):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            get(address, "/-/healthy")
        except (urllib.error.URLError, ConnectionError):
            return True
        time.sleep(0.05)
    return False


def test_it_exposes_what_the_run_has_and_ends_with_the_block():
    metrics = empty()
    with exporting(TOKEN, metrics.copy) as address:
        for finished in (0, 7):
            metrics.values["pimserve_requests_total"][:] = [finished, 1]
            with exposing(LOCAL, lambda: [metrics.copy()]) as own:
                for path in ("/metrics", "/metrics/vllm"):
                    assert get(address, path, Authorization=f"Bearer {TOKEN.token}") == get(own, path)
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(address)
        caught.value.close()
        assert caught.value.code == 401
    assert gone(address)


def test_what_will_not_do_is_said_as_if_it_were_here():
    with (
        pytest.raises(InputError, match=r"--metrics: .*--metrics-token-file"),
        exporting(EndpointOptions("0.0.0.0:0"), empty),
    ):
        pass
    with (
        exposing(LOCAL, list) as address,
        pytest.raises(InputError, match=f"--metrics: {address} cannot be used"),
        exporting(EndpointOptions(address), empty),
    ):
        pass


def test_a_run_whose_exporter_was_killed_goes_on(monkeypatch):
    exporters = []
    popen = subprocess.Popen

    def start(*arguments, **options):
        exporters.append(popen(*arguments, **options))
        return exporters[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    metrics = empty()
    with exporting(LOCAL, metrics.copy) as address:
        assert "pimserve_requests_total" in get(address)
        exporters[0].kill()
        assert gone(address)
    assert exporters[0].poll() == -signal.SIGKILL


def test_it_does_not_outlive_a_run_that_was_killed():
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.cluster.metrics.test_exporter import LOCAL, empty, exporting\n"
        "with exporting(LOCAL, empty().copy) as address:\n"
        "    print(address, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command, root = [sys.executable, "-c", code], Path(__file__).parents[3]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as run:
        address = run.stdout.readline().strip()
        assert "pimserve_requests_total" in get(address)
        run.kill()
    assert gone(address)


def test_one_that_does_not_end_is_ended(monkeypatch):
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {LISTENS}time.sleep(60)"
    monkeypatch.setattr(exporter, "_COMMAND", (sys.executable, "-c", deaf))
    monkeypatch.setattr(exporter, "_PATIENCE_S", 0.1)
    with exporting(LOCAL, empty) as address:
        assert address == "here"
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 30


@pytest.mark.parametrize("early", [True, False])
def test_its_end_is_told_unless_it_was_asked_to(monkeypatch, caplog, early):
    monkeypatch.setattr(exporter, "_COMMAND", (sys.executable, "-c", LISTENS + ("" if early else "time.sleep(60)")))
    with exporting(LOCAL, empty):
        patience_s = time.monotonic() + 30
        while early and "no longer" not in caplog.text and time.monotonic() < patience_s:
            time.sleep(0.01)
    assert ("no longer exposed" in caplog.text) == early
