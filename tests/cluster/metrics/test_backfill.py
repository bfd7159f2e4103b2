"""Finished runs in a real Prometheus."""

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pimserve.cluster.cli.main import app
from pimserve.cluster.metrics import backfill
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import run

ANCHOR = "2026-01-01T00:00:00Z"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, device in (("one", "duplex"), ("two", "h100")):
        run(prepare(load_scenario(None, ["workload.num_requests=200", f"cluster.device={device}"])), folder / name)
    return folder


def loaded(results, into, *names):
    parts = backfill.parts_of([results / name for name in names], 10.0)
    backfill.load(parts, backfill.epoch_of(ANCHOR, parts), into)


@needs_promtool
@pytest.mark.e2e
def test_blocks_are_put_beside_those_that_are_there(results, tmp_path):
    into = tmp_path / "deep" / "data"
    loaded(results, into, "one")
    blocks = {entry.name for entry in into.iterdir() if (entry / "meta.json").exists()}
    assert blocks
    loaded(results, into, "two")
    assert blocks < {entry.name for entry in into.iterdir() if (entry / "meta.json").exists()}
    assert set(json.loads((into / "pimserve.json").read_text())) == {"one", "two"}
    assert [entry.name for entry in into.parent.iterdir()] == ["data"]
    with pytest.raises(InputError, match="has a run one already"):
        loaded(results, into, "one")


@needs_promtool
@pytest.mark.e2e
def test_the_command_says_how_to_look_at_it(results, tmp_path):
    done = CliRunner().invoke(
        app, ["metrics", "backfill", str(results / "one"), "--into", str(tmp_path / "data"), "--interval", "5"]
    )
    assert done.exit_code == 0, done.output
    (number,) = re.findall(r"one: ([\d,]+) samples", done.output)
    listed = subprocess.run(["promtool", "tsdb", "list", str(tmp_path / "data")], capture_output=True, check=True)
    samples = [int(line.split()[4]) for line in listed.stdout.decode().splitlines()[1:]]
    assert sum(samples) == int(number.replace(",", ""))
    assert "--storage.tsdb.retention.time=100y" in done.output


@pytest.mark.medium
def test_without_promtool_it_says_what_to_install(results, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="Debian package prometheus"):
        loaded(results, tmp_path / "data", "one")
    assert list(tmp_path.iterdir()) == []


@needs_promtool
def test_a_promtool_that_fails_leaves_nothing(results, tmp_path, monkeypatch):
    monkeypatch.setattr(backfill, "END", "")  # without its end a text is no OpenMetrics
    with pytest.raises(InputError, match="promtool failed"):
        loaded(results, tmp_path / "data", "one")
    assert not list((tmp_path / "data").iterdir())


@needs_promtool
def test_a_folder_that_is_none_or_damaged(results, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pimserve.json").write_text("[")
    for into, message in (("file", "is no folder"), ("data", "is damaged")):
        with pytest.raises(InputError, match=message):
            loaded(results, tmp_path / into, "one")


@pytest.mark.e2e
def test_export_writes_a_file_or_prints(results, tmp_path):
    command = ["metrics", "export", str(results / "one"), "--epoch", ANCHOR, "--interval", "5"]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0
    written = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "one.om")])
    assert written.exit_code == 0
    assert (tmp_path / "one.om").read_text() == printed.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["one.om"]


def test_what_is_no_number_at_first_is_written_from_when_it_is_one(tmp_path):
    """Percentiles with limits: before anybody was served there are none, and no line says NaN."""
    slo = "slo={preset: mlperf/mixtral-8x7b/server}"
    classes = "workload.classes=[{name: chat, slo: {e2e_p99_s: 60}}]"
    summary = run(prepare(load_scenario(None, ["workload.num_requests=50", slo, classes])), tmp_path / "one")
    parts = backfill.parts_of([tmp_path / "one"], 1.0)
    backfill.write_file(parts, 0.0, tmp_path / "one.om")
    lines = (tmp_path / "one.om").read_text().splitlines()
    assert not [line for line in lines if "NaN" in line]
    of_class, family = summary["classes"][0]["slo"], "pimserve_class_slo_percentile_seconds"
    samples = [line.split()[1:] for line in lines if line.startswith(f"{family}{{")]
    assert float(samples[0][1]) > 0
    assert float(samples[-1][0]) == pytest.approx(of_class["at_percentiles"]["e2e_p99_s"]["measured"], rel=2**-11)


@pytest.mark.medium
@needs_promtool
def test_what_cannot_be_noted_is_not_loaded(results, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(backfill, "write_json", full)
        with pytest.raises(InputError, match="No space left"):
            loaded(results, tmp_path / "data", "one")
    assert list((tmp_path / "data").iterdir()) == []
    loaded(results, tmp_path / "data", "one")


@pytest.mark.medium
@needs_promtool
def test_somebody_else_may_load_runs_at_the_same_time(results, tmp_path, monkeypatch):
    into = tmp_path / "data"
    run_promtool = subprocess.run

    def meanwhile(*arguments, **options):
        monkeypatch.setattr(backfill.subprocess, "run", run_promtool)
        loaded(results, into, "two")
        return run_promtool(*arguments, **options)

    monkeypatch.setattr(backfill.subprocess, "run", meanwhile)
    loaded(results, into, "one")
    assert set(json.loads((into / "pimserve.json").read_text())) == {"one", "two"}


@needs_promtool
def test_nothing_is_written_beside_the_directory_which_may_be_a_volume(results, tmp_path, monkeypatch):
    seen = []
    run_promtool = subprocess.run

    def looking(*arguments, **options):
        seen.append([entry.name for entry in tmp_path.iterdir()])
        return run_promtool(*arguments, **options)

    monkeypatch.setattr(backfill.subprocess, "run", looking)
    loaded(results, tmp_path / "data", "one")
    assert seen == [["data"]]


def test_moments_are_a_millisecond_apart(results):
    end_s = backfill.parts_of([results / "one"], None)[0].times_s[-1]
    (part,) = backfill.parts_of([results / "one"], end_s - 0.0004)
    assert part.times_s == (0.0, end_s)  # of two samples with one timestamp Prometheus keeps the first
    (part,) = backfill.parts_of([results / "one"], end_s / 3)
    assert len(part.times_s) == 4


def test_the_plain_command_takes_runs_of_any_length(results, tmp_path, monkeypatch):
    overrides = ["workload={num_requests: 20, arrival: {process: poisson, rate_per_s: 1.0e-4}}"]
    run(prepare(load_scenario(None, overrides)), tmp_path / "long")
    (part,) = backfill.parts_of([tmp_path / "long"], None)
    end_s, series = part.history.end_s, samples_of(part) // len(part.times_s)
    assert end_s > 24 * 3600
    assert part.interval_s == 300  # some hundred samples
    monkeypatch.setattr(backfill, "_MOST_SAMPLES", 12 * series)
    (part,) = backfill.parts_of([tmp_path / "long"], None)
    assert part.interval_s % 3600 == 0
    assert 0 <= part.interval_s - end_s / 11 < 3600
    assert len(part.times_s) <= 12
    shared = backfill.parts_of([tmp_path / "long", results / "one"], None)
    assert sum(map(samples_of, shared)) <= 12 * series
    done = CliRunner().invoke(app, ["metrics", "export", str(tmp_path / "long"), "--out", str(tmp_path / "long.om")])
    assert done.exit_code == 0, done.output
    assert f"long: a sample every {part.interval_s:,.0f} s of simulated time (--interval)\n" in done.stderr
    with pytest.raises(InputError, match=r"--interval: .* take a longer one, or leave it out"):
        backfill.parts_of([tmp_path / "long"], 300.0)
    monkeypatch.setattr(backfill, "_MOST_SAMPLES", series)
    with pytest.raises(InputError, match=r"long: .* two of each .* give fewer runs, or leave out --metrics-per-engine"):
        backfill.parts_of([tmp_path / "long"], None, per_engine=True)


@pytest.mark.parametrize("end_s", [1.0, 3600.0, 86_400.0, 864_000.0, 9_000_000.0])
def test_a_series_has_some_hundred_samples_however_long_the_run_is(end_s):
    """Prometheus answers with at most 11,000 points of a series."""
    samples = -(-end_s // backfill._usual_interval_s(end_s, 10**9))
    assert samples <= 720
    assert samples >= 240 or end_s < 720 * backfill._NICE_S[0]


def samples_of(part):
    layout = metrics_of(part.history.prepared, part.run_id).layout
    return len(part.times_s) * sum(
        len(keys) * (len(layout.bounds[family]) + 3 if family in layout.bounds else 1)
        for family, keys in layout.keys.items()
    )


@pytest.mark.parametrize("interval_s", [1e-12, float("inf"), float("nan")])
def test_intervals_that_nobody_means(results, interval_s):
    with pytest.raises(InputError, match="--interval: "):
        backfill.parts_of([results / "one"], interval_s)


@pytest.mark.parametrize("epoch", ["99999999999999", "1900-01-01", "2070-01-01", "9" * 400])
def test_a_block_so_far_away_that_others_would_be_deleted(results, epoch):
    parts = backfill.parts_of([results / "one"], None)
    with pytest.raises(InputError, match="--epoch: must be from 1970 to 2069"):
        backfill.epoch_of(epoch, parts)


@needs_promtool
def test_a_block_in_the_future_after_which_nothing_is_scraped(results, tmp_path):
    parts = backfill.parts_of([results / "one"], None)
    with pytest.raises(InputError, match="end in the future"):
        backfill.load(parts, backfill.epoch_of("2069-12-01", parts), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_name_is_no_text(results, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    folder.symlink_to(results / "one")
    named = Path(os.fsdecode(os.fsencode(tmp_path) + b"/copy\xff"))
    shutil.copytree(results / "one", named)
    assert [part.run_id for part in backfill.parts_of([folder, named], None)] == ["one", "copy?"]
    backfill.write_file(backfill.parts_of([named], 10.0), 0.0, tmp_path / "out.om")
    assert 'run_id="copy?"' in (tmp_path / "out.om").read_text()
