"""Where traces are: plain and compressed files, folders, archives, and what is damaged of these."""

import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.traces import Trace, TraceSpec, load_trace, trace_digest
from pimserve.loadgen.traces.zstd_stream import ZstdStream

HEADER = b"arrival_s,input_tokens,output_tokens\n"
ROWS = b"".join(b"%d,%d,%d\n" % (t, 100 + t, 1 + t) for t in range(10))
BARE = zstandard.ZstdCompressor(write_content_size=False)


def load(path: Path, **keys: object) -> Trace:
    return load_trace(TraceSpec.model_validate({"path": str(path), **keys}))


def archive(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def refused(path: Path, **keys: object) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **keys)
    return str(caught.value).removeprefix(f"{path.parent}/")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress, BARE.compress])
@pytest.mark.parametrize("name", ["trace", "trace.csv", "trace.csv.gz"])
def test_compression_is_seen_by_the_content(tmp_path: Path, pack, name: str) -> None:
    (tmp_path / name).write_bytes(pack(HEADER + ROWS))
    trace = load(tmp_path / name)
    assert (trace.format, trace.rows_read, trace.input_tokens[-1]) == ("csv", 10, 109)


@given(parts=st.lists(st.binary(max_size=3000), max_size=5), reads=st.lists(st.integers(1, 4000), min_size=1))
def test_zstd_of_several_frames_is_read_in_pieces_of_any_size(parts: list[bytes], reads: list[int]) -> None:
    stream = ZstdStream(io.BytesIO(b"".join(map(zstandard.compress, parts))))
    found = b""
    while piece := stream.read(reads[len(found) % len(reads)]):
        found += piece
    assert found == b"".join(parts)


def test_zstd_cut_short_or_damaged(tmp_path: Path) -> None:
    path, whole = tmp_path / "t.csv.zst", BARE.compress(HEADER + ROWS * 50)
    for content, message in (
        (whole[:-5], "t.csv.zst: the zstd stream ends too early: the file is cut short"),
        (whole[:20] + b"\xff" * 20 + whole[40:], "t.csv.zst: the zstd stream is damaged: "),
        (whole + b"no frame", "t.csv.zst: the zstd stream is damaged: "),
    ):
        path.write_bytes(content)
        assert refused(path, format="csv").startswith(message)
        assert refused(path).startswith(message)


@pytest.mark.medium
def test_a_zstd_bomb_is_held_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(zstandard.compress(bytes(1 << 30)))
    tracemalloc.start()
    try:
        assert refused(path, format="csv") == "t:1: the line is longer than 1,048,576 bytes"
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["folder", "w", "w:gz", "zst"])
def test_parts_in_a_folder_or_archive_are_one_trace(tmp_path: Path, kind: str) -> None:
    lines = ROWS.splitlines(keepends=True)
    files = {f"day/part-{i}.csv": HEADER + row for i, row in enumerate(lines)}  # 10 comes after 9
    files |= {"day/part-10.csv.gz": gzip.compress(HEADER + b"11,7,7\n"), "README.md": b"parts of a day\n"}
    path = tmp_path / "trace"
    if kind == "folder":
        for name, content in {**files, ".hidden.csv": b"no trace\n"}.items():
            (path / name).parent.mkdir(exist_ok=True, parents=True)
            (path / name).write_bytes(content)
        (tmp_path / "elsewhere.csv").write_bytes(b"no part of it\n")
        (path / "link.csv").symlink_to(tmp_path / "elsewhere.csv")
    elif kind == "zst":
        path.write_bytes(zstandard.compress(archive(tmp_path / "t.tar", files, "w").read_bytes()))
    else:
        archive(path, files, kind)
    trace = load(path)
    assert trace.input_tokens.tolist() == [*range(100, 110), 7]
    assert trace.arrival_ps[-1] == 11 * 10**12
    assert len(load(path, max_requests=3).arrival_ps) == 3
    assert trace_digest(TraceSpec(path=str(path))) != trace_digest(TraceSpec(path=str(tmp_path)))


def test_bad_archives_and_folders(tmp_path: Path) -> None:
    good = {"a.csv": HEADER + ROWS, "b.csv": HEADER + b"10,1,1\n"}
    whole = archive(tmp_path / "whole.tar.gz", good).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:-30])
    assert refused(tmp_path / "cut.tar.gz", format="csv").endswith(
        "the gzip stream ends too early: the file is cut short"
    )
    (tmp_path / "cut.tar").write_bytes(archive(tmp_path / "whole.tar", good, "w").read_bytes()[:700])
    assert "cut.tar: the archive is cut short or damaged" in refused(tmp_path / "cut.tar", format="csv")
    row = archive(tmp_path / "row.tar", {**good, "b.csv": HEADER + b"10,x,1\n"}, "w")
    assert (
        refused(row, format="csv")
        == "row.tar:b.csv:2: input_tokens is 'x'; a whole number from 1 to 10000000 is needed"
    )
    turned = archive(tmp_path / "turned.tar", {"b.csv": good["b.csv"], "a.csv": good["a.csv"]}, "w")
    assert "turned.tar:a.csv:2: arrival_s '0' lies before the row above" in refused(turned)
    np.testing.assert_array_equal(load(turned, sort=True).arrival_ps, np.arange(11) * 10**12)
    empty = archive(tmp_path / "empty.tar", {"README": b"nothing here"}, "w")
    assert refused(empty, format="csv") == "empty.tar: holds no file that ends in .csv"
    burst = (
        b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
    )
    third = b"Timestamp,Session ID,Elapsed time" + burst[9:].replace(b"\n5,", b"\n6,1,2,")
    other = archive(tmp_path / "other.tar", {"a.csv": burst, "b.csv": third}, "w")
    message = refused(other, format="burstgpt")
    assert message.startswith("other.tar:b.csv:1: has other columns than the files before it")


def test_an_archive_that_does_not_end_is_refused(tmp_path: Path) -> None:
    """However it is cut, or a header damaged: the files behind that would be missing, and nobody the wiser."""
    whole = archive(tmp_path / "t.tar", {"a.csv": HEADER + ROWS, "b.csv": HEADER + b"50,1,2\n"}, "w").read_bytes()
    assert len(load(tmp_path / "t.tar").arrival_ps) == 11
    for end in (1024, 1200, 1536, 1540, 2048):
        (tmp_path / "t.tar").write_bytes(whole[:end])
        assert ": the archive is cut short or damaged: " in refused(tmp_path / "t.tar", format="csv")
    (tmp_path / "t.tar").write_bytes(whole[:1030] + b"\xff" + whole[1031:])
    assert refused(tmp_path / "t.tar", format="csv") == "t.tar: the archive is cut short or damaged: bad checksum"


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_told_from_one_of_unknown_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    assert refused(tmp_path / "t.csv") == "t.csv: the file is empty"


def test_a_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        load(Path("a" * 5000))
