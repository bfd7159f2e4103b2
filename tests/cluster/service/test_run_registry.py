"""The registry: what goes in comes out, also after a crash; states only go forward."""

import json
import os
import sqlite3
import stat
import threading

import pytest

from pimserve.cluster.service.run_registry import Registry, RunFilter, RunRequest
from pimserve.errors import InputError


@pytest.fixture
def registry(tmp_path):
    opened = Registry(tmp_path / "registry.sqlite3")
    yield opened
    opened.close()


def add(registry, run_id, key="", name="", labels=None):
    labels = json.dumps(labels or {})
    name = name or f"name-{run_id}"
    return registry.add(run_id, RunRequest(name, 2.5, True, key, f"d{run_id}", labels=labels))


def test_a_run_from_launch_to_end(registry):
    record = add(registry, "a", "key")
    assert (record.state, record.name, record.speed, record.start_paused) == ("queued", "name-a", 2.5, True)
    assert record.cancelled is False
    assert registry.by_key("key") == registry.get("a") == record
    registry.start("a")
    assert (registry.get("a").state, registry.get("a").held) == ("starting", True)
    registry.begun("a")
    assert registry.get("a").state == "paused"
    registry.hold("a", held=False)
    assert (registry.get("a").state, registry.get("a").held) == ("running", False)
    died = registry.died("a")
    assert (died.state, died.restarts) == ("starting", 1)
    registry.begun("a")
    assert registry.get("a").state == "running"
    registry.restarting("a")
    assert (registry.get("a").state, registry.get("a").restarts) == ("starting", 1)
    registry.cancel("a")
    assert registry.get("a").cancelled is True
    registry.end("a", "failed", "why", {"steps": 3})
    ended = registry.get("a")
    assert (ended.state, ended.error, ended.progress) == ("failed", "why", '{"steps": 3}')
    assert ended.created_s <= ended.started_s <= ended.ended_s


def test_what_has_ended_stays_as_it_is(registry):
    add(registry, "a")
    registry.end("a", "cancelled", "", {})
    ended = registry.get("a")
    registry.start("a")
    registry.begun("a")
    registry.hold("a", held=True)
    registry.restarting("a")
    registry.cancel("a")
    registry.end("a", "finished", "", {})
    assert registry.get("a") == ended


def test_only_what_has_failed_waits_again(registry):
    for run_id, state in (("a", "failed"), ("b", "finished"), ("c", "cancelled")):
        add(registry, run_id)
        registry.start(run_id)
        registry.end(run_id, state, "why", {"steps": 3})
        registry.requeue(run_id)
    again = registry.get("a")
    assert (again.state, again.error, again.ended_s, again.progress) == ("queued", "", None, '{"steps": 3}')
    assert [registry.get(run_id).state for run_id in "bc"] == ["finished", "cancelled"]
    registry.start("a")
    assert registry.get("a").state == "starting"


def test_runs_without_keys_do_not_collide_and_those_with_do(registry):
    add(registry, "a")
    add(registry, "b")
    add(registry, "c", "key")
    with pytest.raises(sqlite3.IntegrityError):
        add(registry, "d", "key")
    assert registry.get("d") is None
    registry.remove("c")
    add(registry, "d", "key")


def test_pages_are_newest_first_and_do_not_skip_or_repeat(registry):
    for number in range(25):
        add(registry, f"r{number}")
        if number % 5 == 0:
            registry.end(f"r{number}", "finished", "", {})
    seen, before = [], None
    while page := registry.page(7, before, RunFilter()):
        seen += [record.id for record in page]
        before = page[-1].number
    assert seen == [f"r{number}" for number in reversed(range(25))]
    assert [record.id for record in registry.page(3, None, RunFilter({"finished"}))] == ["r20", "r15", "r10"]
    assert [record.id for record in registry.in_states("finished")] == ["r0", "r5", "r10", "r15", "r20"]


def test_filters_let_through_what_has_all_that_is_asked_for(registry):
    add(registry, "a", labels={"team": "chips", "sweep": "1"})
    add(registry, "b", name="other", labels={"team": "chips"})
    add(registry, "c", name="o[t]?er", labels={"team": "chips' OR 1=1 --"})
    cuts = [registry.get(run_id).created_s for run_id in "abc"]

    def found(**wanted):
        return "".join(record.id for record in registry.page(9, None, RunFilter(**wanted)))

    assert found(labels={"team": "chips"}) == "ba"
    assert found(labels={"team": "chips", "sweep": "1"}) == "a"
    assert found(labels={"team": "chips' OR 1=1 --"}) == "c"
    assert found(labels={"sweep": "2"}) == found(labels={"chips": "team"}) == ""
    assert found(name="other") == "b"
    assert (found(name="o*er"), found(name="o[t]?er"), found(name="*"), found(name="O*")) == ("cb", "c", "cba", "")
    assert found(since_s=cuts[1]) == "cb"
    assert found(until_s=cuts[1]) == "a"
    assert found(since_s=cuts[0], until_s=cuts[2], name="*e*", states=["queued"], labels={"team": "chips"}) == "ba"
    registry.pace("a", 7.0)
    assert registry.get("a").speed == 7


def test_it_is_there_again(tmp_path):
    first = Registry(tmp_path / "r")
    record = add(first, "a")
    first.close()
    second = Registry(tmp_path / "r")
    assert second.get("a") == record
    second.close()


def test_the_file_and_those_beside_it_are_for_their_user_only(tmp_path, caplog):
    before = os.umask(0)
    try:
        registry = Registry(tmp_path / "registry.sqlite3")
        add(registry, "a")
        files = list(tmp_path.iterdir())
        assert len(files) == 2  # with its journal
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        registry.close()
    finally:
        os.umask(before)
    assert not caplog.records


def test_a_file_that_others_may_read_is_told_of_and_used(tmp_path, caplog):
    file = tmp_path / "registry.sqlite3"
    first = Registry(file)
    add(first, "a")
    first.close()
    file.chmod(0o644)
    second = Registry(file)
    assert second.get("a").name == "name-a"
    second.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} is open to other users (mode 0644): chmod 600 makes it private"
    ]


FIRST_VERSION = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, state TEXT NOT NULL,
    speed REAL NOT NULL, start_paused INTEGER NOT NULL, created_s REAL NOT NULL, started_s REAL, ended_s REAL,
    error TEXT NOT NULL, restarts INTEGER NOT NULL, cancelled INTEGER NOT NULL, progress TEXT NOT NULL,
    idempotency_key TEXT UNIQUE, request_digest TEXT NOT NULL
);
CREATE INDEX runs_by_state ON runs (state);
INSERT INTO runs VALUES (1, 'a', 'n', 'paused', 0, 0, 1, 2, NULL, '', 0, 0, '{}', NULL, 'd');
INSERT INTO runs VALUES (2, 'b', 'n', 'queued', 0, 1, 1, NULL, NULL, '', 0, 0, '{}', NULL, 'd');
INSERT INTO runs VALUES (3, 'c', 'n', 'running', 3, 1, 1, 2, NULL, '', 1, 0, '{}', 'key', 'd');
INSERT INTO runs VALUES (4, 'd', 'n', 'finished', 0, 0, 1, 2, 3, '', 0, 0, '{"steps": 3}', NULL, 'd');
PRAGMA user_version = 1;
"""


def test_a_file_of_the_first_version_is_brought_up_to_date(tmp_path):
    old = sqlite3.connect(tmp_path / "r")
    old.executescript(FIRST_VERSION)
    old.close()
    for _ in range(2):  # the second time there is nothing to do
        registry = Registry(tmp_path / "r")
        records = {record.id: record for record in registry.page(9, None, RunFilter())}
        assert {run: (record.state, record.held) for run, record in records.items()} == {
            "a": ("paused", True),
            "b": ("queued", True),
            "c": ("running", False),
            "d": ("finished", False),
        }
        assert (records["c"].speed, records["c"].restarts, records["d"].progress) == (3, 1, '{"steps": 3}')
        assert {record.place for record in records.values()} == {"{}"}
        registry.close()
    registry = Registry(tmp_path / "r")
    registry.restarting("a")
    registry.begun("a")  # held over the change of version
    assert registry.get("a").state == "paused"
    registry.close()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("not a database, but long enough to be looked at " * 100)
    with pytest.raises(InputError, match="cannot be used as a registry"):
        Registry(tmp_path / "text")
    with pytest.raises(InputError, match="cannot be used as a registry: No such file or directory"):
        Registry(tmp_path / "none" / "registry")
    other = sqlite3.connect(tmp_path / "newer")
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(InputError, match="is of version 99; this pimserve reads up to 4"):
        Registry(tmp_path / "newer")


def test_threads_do_not_disturb_each_other(registry):
    def work(name):
        for number in range(20):
            add(registry, f"{name}{number}")
            registry.start(f"{name}{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.in_states("starting")) == 80
