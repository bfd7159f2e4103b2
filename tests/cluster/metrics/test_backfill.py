"""Finished runs in a real Prometheus."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from pimserve.cluster.cli import app
from pimserve.cluster.metrics import backfill
from pimserve.cluster.run import run
from pimserve.cluster.scenario import load_scenario
from pimserve.errors import InputError

ANCHOR = "2026-01-01T00:00:00Z"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, device in (("one", "duplex"), ("two", "h100")):
        run(load_scenario(None, ["workload.num_requests=200", f"cluster.device={device}"]), folder / name)
    return folder


def loaded(results, into, *names):
    parts = backfill.parts_of([results / name for name in names], None)
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
    done = CliRunner().invoke(app, ["metrics", "backfill", str(results / "one"), "--into", str(tmp_path / "data")])
    assert done.exit_code == 0, done.output
    assert "one: " in done.output
    assert "--storage.tsdb.retention.time=100y" in done.output


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


def test_a_folder_that_is_none_or_damaged(results, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pimserve.json").write_text("[")
    for into, message in (("file", "is no folder"), ("data", "is damaged")):
        with pytest.raises(InputError, match=message):
            loaded(results, tmp_path / into, "one")


@pytest.mark.e2e
def test_export_writes_a_file_or_prints(results, tmp_path):
    command = ["metrics", "export", str(results / "one"), "--epoch", ANCHOR]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0
    written = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "one.om")])
    assert written.exit_code == 0
    assert (tmp_path / "one.om").read_text() == printed.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["one.om"]
