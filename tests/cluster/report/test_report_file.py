"""Where `pimserve report` writes its page, and what it leaves alone."""

import errno
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pimserve.cluster.base import files
from pimserve.cluster.cli.main import report_command as report_cli
from pimserve.cluster.report import report
from pimserve.cluster.report.report import write_report
from pimserve.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


def call(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command("report")(report_cli.report_command)
    return CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=True)


def test_the_file_lies_where_it_is_wanted(bare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(bare).output.endswith(f"report in {bare / 'report.html'}\n")
    assert call(bare, bare).output.endswith("report in report.html\n")
    assert call(bare / "summary.json", "--out", "a/b.html").exit_code == 0
    assert (tmp_path / "a" / "b.html").read_text() == (bare / "report.html").read_text()


def test_a_file_is_replaced_only_when_told_to(bare, tmp_path):
    out = tmp_path / "out.html"
    out.write_text("mine")
    done = call(bare, "--out", out)
    assert "exists already; give another file with --out, or --force" in str(done.exception)
    assert out.read_text() == "mine"
    assert call(bare, "--out", out, "--force", "--title", "A title").exit_code == 0
    assert "<title>A title</title>" in out.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "out.html"]


def test_a_place_that_is_none_is_said_before_a_file_in_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("report.html").write_text("mine")
    with pytest.raises(InputError, match=r"nowhere: no results here"):
        write_report([Path("nowhere")], None)


def test_results_of_a_run_are_not_replaced(copy):
    for name in ("summary.json", "requests.npy"):
        before = (copy / name).read_bytes()
        with pytest.raises(InputError, match="belongs to the results of a run"):
            write_report([copy], copy / name, force=True)
        assert (copy / name).read_bytes() == before


def test_a_full_disk_leaves_nothing(bare, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match=r"out\.html: cannot be written: No space left on device"):
        write_report([bare], tmp_path / "new" / "folder" / "out.html")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_file_system_without_links_takes_reports_too(bare, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refused)
    out = write_report([bare], tmp_path / "out.html")
    assert out.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "out.html"]
    with pytest.raises(FileExistsError), files.atomic_file(out, replace=False):
        pass
    assert out.read_text().startswith("<!doctype html>")


def test_a_name_may_be_as_long_as_names_are(bare, tmp_path):
    write_report([bare], tmp_path / ("\u9577" * 83 + ".html"))  # 254 bytes, of 255 at most


def test_a_folder_is_never_replaced(copy, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is no file"):
        write_report([copy], tmp_path / "folder", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_links_are_neither_followed_nor_replaced(copy, tmp_path, force):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    for out in (tmp_path / "link", tmp_path / "dangling"):
        with pytest.raises(InputError, match="is a link, which a report neither follows nor replaces"):
            write_report([copy], out, force=force)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_a_file_that_appears_meanwhile_is_kept(copy, tmp_path, monkeypatch):
    out = tmp_path / "out.html"
    drawn = report.html

    def slow(page):
        out.write_text("theirs")
        return drawn(page)

    monkeypatch.setattr(report, "html", slow)
    with pytest.raises(InputError, match="exists already"):
        write_report([copy], out)
    assert out.read_text() == "theirs"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_is_an_error(copy):
    with pytest.raises(InputError, match="cannot be written"):
        write_report([copy], Path("/proc/nothing/out.html"))


@pytest.mark.parametrize("bad", ["nowhere", "file/below"])
def test_a_place_that_is_none_is_an_error(copy, tmp_path, bad):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=bad):
        write_report([Path(tmp_path / bad)], tmp_path / "out.html")
    with pytest.raises(InputError, match="cannot be written"):
        write_report([copy], tmp_path / "file" / "out.html")


def test_more_runs_than_can_be_told_apart_are_refused(copy, tmp_path):
    with pytest.raises(InputError, match="at most 32"):
        write_report([copy] * 33, tmp_path / "out.html")
