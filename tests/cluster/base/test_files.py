import os
import stat
from pathlib import Path

import pytest

from pimserve.cluster.base.files import (
    PRIVATE,
    atomic_file,
    is_draft,
    output_file,
    remove_drafts,
    write_bytes,
    write_json,
)
from pimserve.errors import InputError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_bytes(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_bytes(file, b"new")
    assert caught.value.filename == str(file)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        with atomic_file(tmp_path / "file") as file:
            file.write(b"half")
            assert [is_draft(entry.name) for entry in tmp_path.iterdir()] == [True]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as first, atomic_file(tmp_path / "file") as second:
        second.write(b"second")
        first.write(b"first")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_a_file_that_is_there_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"theirs")
    with pytest.raises(FileExistsError), atomic_file(tmp_path / "file", replace=False) as file:
        file.write(b"ours")
    with pytest.raises(InputError, match="is there"), output_file(tmp_path / "file", exists="is there") as text:
        text.write("ours")
    assert (tmp_path / "file").read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_private_files_are_for_their_user_only(tmp_path: Path) -> None:
    write_json(tmp_path / "public", {})
    write_json(tmp_path / "private", {}, PRIVATE)
    for name, mode in (("public", 0o666), ("private", 0o600)):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode & ~umask()


def umask() -> int:
    before = os.umask(0o022)
    os.umask(before)
    return before


def test_errors_name_the_file_and_not_its_draft(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_bytes(tmp_path / "none" / "file", b"")
    assert caught.value.filename == str(tmp_path / "none" / "file")


def test_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    for name in (".file.0123abcd.new", "file", ".hidden"):
        (tmp_path / name).touch()
    remove_drafts(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", ".hidden"}
