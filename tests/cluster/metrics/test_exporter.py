"""The process that exposes a run: it is never waited for, and its end is told."""

import sys
import time

import pytest

from pimserve.cluster.metrics import exporter
from pimserve.cluster.metrics.endpoint import EndpointOptions
from pimserve.cluster.metrics.exporter import exporting
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare

LISTENS = 'import signal, sys, time; sys.stdin.readline(); print(\'{"address": "here"}\', flush=True); '


@pytest.fixture(scope="module")
def run():
    return metrics_of(prepare(load_scenario(None, [])), "run")


def test_one_that_does_not_end_is_ended(run, monkeypatch):
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {LISTENS}time.sleep(60)"
    monkeypatch.setattr(exporter, "_COMMAND", (sys.executable, "-c", deaf))
    monkeypatch.setattr(exporter, "_PATIENCE_S", 0.1)
    with exporting(EndpointOptions("127.0.0.1:0"), lambda: run) as address:
        assert address == "here"
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 30


@pytest.mark.parametrize("early", [True, False])
def test_its_end_is_told_unless_it_was_asked_to(run, monkeypatch, caplog, early):
    monkeypatch.setattr(exporter, "_COMMAND", (sys.executable, "-c", LISTENS + ("" if early else "time.sleep(60)")))
    with exporting(EndpointOptions("127.0.0.1:0"), lambda: run):
        patience_s = time.monotonic() + 30
        while early and "no longer" not in caplog.text and time.monotonic() < patience_s:
            time.sleep(0.01)
    assert ("no longer exposed" in caplog.text) == early
