"""Processes and files that outlive others."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from pimserve.cluster.base.files import PRIVATE, read_json, write_json
from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.base.processes import Process, StopWatch, readable
from pimserve.cluster.service.data_folder import DataFolder
from pimserve.errors import InputError


def test_a_process_is_itself_until_it_ends():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert process.alive()
    assert Process.from_document(process.document()) == process
    process.signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.alive()  # a zombie does not run
    child.communicate()
    assert not process.alive()
    process.signal(signal.SIGKILL)  # nobody is hit


def test_another_process_of_the_same_number_is_another():
    me = Process.of(os.getpid())
    assert me.alive()
    assert not Process(me.pid, me.started + "0").alive()


def test_how_long_a_process_is_stopped():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watch = StopWatch()
        assert watch.stopped_s(child.pid) == 0.0
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        watch.stopped_s(child.pid)
        time.sleep(0.01)
        assert 0.01 <= watch.stopped_s(child.pid) < 10
        child.send_signal(signal.SIGCONT)
        os.waitid(os.P_PID, child.pid, os.WCONTINUED)
        assert watch.stopped_s(child.pid) == 0.0
        child.kill()
    assert watch.stopped_s(child.pid) == 0.0


def test_a_lock_has_one_holder(tmp_path):
    first = take_lock(tmp_path / "lock")
    assert take_lock(tmp_path / "lock") is None
    code = "import sys; from pathlib import Path; from pimserve.cluster.base.locks import take_lock\n"
    code += "sys.exit(take_lock(Path(sys.argv[1])) is None)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "lock"], check=False).returncode == 1
    first.close()
    with take_lock(tmp_path / "lock"):
        pass


def test_documents_are_whole_and_private(tmp_path):
    file = tmp_path / "x.json"
    assert read_json(file) is None
    write_json(file, {"a": 1}, PRIVATE)
    with pytest.raises(TypeError):
        write_json(file, {"a": object()}, PRIVATE)
    assert read_json(file) == {"a": 1}
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_pipe_is_readable_when_something_or_its_end_is_there_whatever_its_number():
    reads, writes = os.pipe()
    high = fcntl.fcntl(reads, fcntl.F_DUPFD, min(1500, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1))
    with os.fdopen(high, "rb") as pipe, os.fdopen(reads, "rb"), os.fdopen(writes, "wb", buffering=0) as other_end:
        assert not readable(pipe, 0.0)
        other_end.write(b"a")
        assert readable(pipe, 0.0)
        assert pipe.read(1) == b"a"
        other_end.close()
        assert readable(pipe, 0.0)
    with pytest.raises(ValueError, match="closed"):
        readable(pipe, 0.0)


def test_run_folders_come_and_go_whole(tmp_path):
    data = DataFolder(tmp_path / "deep" / "data")
    assert data.path.stat().st_mode & 0o777 == 0o700
    folder = data.create("abc", "name: x\n", {"speed": 0.0})
    assert folder.scenario.read_text() == "name: x\n"
    assert folder.size() == len("name: x\n") + folder.options.stat().st_size
    with pytest.raises(TypeError):
        data.create("broken", "", {"speed": object()})
    data.remove("abc")
    data.remove("abc")
    assert list(data.runs.iterdir()) == []
    (data.runs / ".new-left").mkdir()
    for run_id in ("queued", "not launched", "begun"):
        data.create(run_id, "name: x\n", {"speed": 0.0})
    data.run("begun").log.touch()
    (data.runs / "notes.txt").touch()
    data.remove_leftovers(lambda run_id: run_id == "queued")
    assert {entry.name for entry in data.runs.iterdir()} == {"queued", "begun", "notes.txt"}


def test_a_data_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used as a data folder"):
        DataFolder(tmp_path / "file")
