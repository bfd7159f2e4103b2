"""What processes leave that are killed between two steps of writing, and a machine that loses its power."""

import os
import shutil

import pytest

from pimserve.cluster.base.whole_folders import remove_remains, results_folder
from pimserve.cluster.service.data_folder import DataFolder
from pimserve.errors import InputError


@pytest.mark.parametrize("again", ["refused", "told"])
def test_nothing_is_left_beside_results_whose_run_was_killed_when_they_were_there(tmp_path, monkeypatch, again):
    out = tmp_path / "out"
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)  # it does not come to that
        (tmp_path / "kept").mkdir()
        with results_folder(out, "name", tmp_path / "kept" / "part") as (folder, _):
            (folder / "summary.json").write_text("{}")
        (tmp_path / "kept").rmdir()
    assert {path.name for path in tmp_path.iterdir()} > {"out"}
    if again == "refused":
        with pytest.raises(InputError, match="exists already"), results_folder(out, "name"):
            pass
    else:
        remove_remains(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "summary.json").read_text() == "{}"


@pytest.fixture
def synced(monkeypatch):
    """Files that were synced, by inode."""
    found = set()
    fsync = os.fsync

    def note(handle):
        found.add(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    return found


def test_results_are_on_the_disk_when_they_have_their_name(tmp_path, synced):
    """Else a machine that loses its power may keep the name alone."""
    with results_folder(tmp_path / "out", "name") as (folder, target):
        (folder / "runs").mkdir()
        files = [folder / "a", folder / "runs" / "b"]
        for file in files:
            file.write_text("c")
        wanted = {path.stat().st_ino for path in (*files, folder, folder / "runs", tmp_path)}
        assert not synced & wanted
    assert synced >= wanted
    assert target.is_dir()


def test_a_launched_run_is_on_the_disk(tmp_path, synced):
    """Else a machine that loses its power may keep a part of a scenario, which can be another scenario."""
    data = DataFolder(tmp_path / "data")
    folder = data.create("a", "name: a\n", {"speed": 0})
    assert synced >= {path.stat().st_ino for path in (folder.scenario, folder.options, data.runs)}
    assert folder.scenario.read_text() == "name: a\n"


def test_a_run_whose_results_are_there_can_be_continued(tmp_path):
    """Its worker could not say how it ended, for the disk failed: the checkpoint is gone by then."""
    folder = DataFolder(tmp_path / "data").create("a", "name: a\n", {"speed": 0})
    assert not folder.resumable
    folder.results.mkdir()
    (folder.results / "summary.json").write_text("{}")
    assert folder.resumable
