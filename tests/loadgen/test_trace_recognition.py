"""Which format a trace has, by its content; and formats of other packages."""

import bz2
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from pimserve.errors import InputError
from pimserve.loadgen.traces import BUILT_IN_FORMATS, TraceSpec, format_names, load_trace
from pimserve.loadgen.workload import WorkloadSpec, generate
from tests.loadgen.slices import SLICES, real

MOONCAKE = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}
CONTENTS = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,591,140\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,x\n",
    "csv": '"output_tokens",note,"arrival_s",input_tokens\n1,x,0,5\n',
    "jsonl": '{"arrival_s": 0, "input_tokens": 3, "output_tokens": 4, "user": "a"}\n',
    "mooncake": json.dumps(MOONCAKE) + "\n",
    "bailian": json.dumps({**MOONCAKE, "chat_id": 1, "parent_chat_id": -1, "type": "text", "turn": 1}) + "\n",
}


def recognised(path: Path, **keys: object) -> str:
    return load_trace(TraceSpec.model_validate({"path": str(path), **keys})).format


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_a_format_is_recognised_by_its_content(tmp_path: Path, name: str, pack) -> None:
    (tmp_path / "trace").write_bytes(pack(CONTENTS[name]))
    assert recognised(tmp_path / "trace") == name
    for crlf in (True, False):
        (tmp_path / "trace").write_text(CONTENTS[name].replace("\n", "\r\n" if crlf else "\n") * 1)
        assert recognised(tmp_path / "trace") == name


def test_a_long_first_line_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(json.dumps({**MOONCAKE, "hash_ids": list(range(40_000))}) + "\n")
    assert recognised(tmp_path / "trace") == "mooncake"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("text\n", "has none of the formats azure, bailian, "),
        (
            "a,b,c\n1,2,3\n",
            "(trace begins with 'a,b,c'); workload.trace.format says which it is, and workload.tr",
        ),
        ("a\tb\n1\t2\n", r"(trace begins with 'a\tb')"),
        ("[1, 2]\n", "has none of the formats"),
        ('{"requests": 1}\n', "has none of the formats"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens,arrival_s,input_tokens,output_tokens\n",
            "may be azure and csv: say",
        ),
        ("\0\1\2\3", "(trace begins with the bytes 00 01 02 03, no text in UTF-8); workload.trace.format"),
    ],
)
def test_what_fits_none_or_several_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "trace").write_text(content)
    with pytest.raises(InputError) as refused:
        recognised(tmp_path / "trace")
    assert refused.value.where == str(tmp_path / "trace")
    assert message in refused.value.message


def test_another_compression_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "trace").write_bytes(bz2.compress(CONTENTS["azure"].encode()))
    with pytest.raises(InputError, match=r"begins with the bytes 42 5a 68 39 31 41 59 26, no text in UTF-8"):
        recognised(tmp_path / "trace")


@pytest.mark.parametrize(
    ("content", "nearest"),
    [
        (
            "TIMESTAMP,ContextToken,GeneratedTokens\n",
            "azure, of which trace lacks 'ContextTokens' (is it 'ContextToken'?)",
        ),
        (
            "timestamp,contexttokens,generatedtokens\n",
            "azure, of which trace lacks 'ContextTokens' (is it 'contexttokens'?)",
        ),
        ("Timestamp,Request tokens\n", "burstgpt, of which trace lacks 'Response tokens'; workload"),
        ("arrived_at,num_decode_tokens,n\n", "vidur, of which trace lacks 'num_prefill_tokens'; workload"),
        ("arrival_s,input_tokens\n", "csv, of which trace lacks 'output_tokens'; workload"),
        (
            json.dumps({"timestamp": 0, "input_len": 5, "output_length": 6}),
            "mooncake, of which trace lacks 'input_length'",
        ),
        (
            json.dumps({"timestamp": 0, "output_length": 6, "chat_id": 1, "parent_chat_id": -1}),
            "bailian, of which trace",
        ),
        (json.dumps({"arrival_s": 0, "input_tokens": 5}), "jsonl, of which trace lacks 'output_tokens'"),
        ("a,b,c\n", None),
        ("arrival_s,prompt,answer\n", None),
        ("text\n", None),
    ],
)
def test_of_the_nearest_format_it_is_said_what_is_missing(tmp_path: Path, content: str, nearest: str | None) -> None:
    (tmp_path / "trace").write_text(content)
    with pytest.raises(InputError, match="has none of the formats") as refused:
        recognised(tmp_path / "trace")
    if nearest is None:
        assert "nearest" not in refused.value.message
    else:
        assert f"; the nearest is {nearest}" in refused.value.message


def test_of_a_folder_it_is_said_which_file_lacks_it(tmp_path: Path) -> None:
    for name, column in (("a", "GeneratedTokens"), ("b", "Generated")):
        (tmp_path / f"{name}.csv").write_text(f"TIMESTAMP,ContextTokens,{column}\n")
    with pytest.raises(InputError, match=r"the nearest is azure, of which b.csv lacks 'GeneratedTokens';"):
        recognised(tmp_path)


def test_a_folder_of_two_formats_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CONTENTS["azure"])
    (tmp_path / "b.csv").write_text(CONTENTS["vidur"])
    with pytest.raises(InputError, match="has none of the formats"):
        recognised(tmp_path)
    (tmp_path / "b.csv").unlink()
    (tmp_path / "b.jsonl").write_text(CONTENTS["mooncake"])
    with pytest.raises(InputError, match="may be azure and mooncake: say which"):
        recognised(tmp_path)
    assert recognised(tmp_path, format="mooncake") == "mooncake"


def test_columns_say_that_it_is_a_generic_one(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(CONTENTS["azure"])
    columns = {"arrival": "TIMESTAMP", "input": "ContextTokens", "output": "GeneratedTokens", "unit": "date"}
    assert recognised(tmp_path / "trace", columns=columns) == "csv"
    with pytest.raises(InputError, match="the nearest is csv, of which trace lacks 'tokens';"):
        recognised(tmp_path / "trace", columns={**columns, "input": "tokens"})


def test_the_description_says_which_it_is(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(CONTENTS["vidur"])
    described = generate(WorkloadSpec.model_validate({"trace": {"path": str(tmp_path / "trace")}}), 0).description
    assert described == f"1 requests; vidur trace {tmp_path / 'trace'}"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=real)
        for name, kind in {
            "azure_llm_2023_code_0000-1800s.csv.gz": "azure",
            "azure_llm_2023_conv_0000-1800s.csv.gz": "azure",
            "mooncake_fast25_conversation_0000-1200s.jsonl.gz": "mooncake",
            "mooncake_fast25_synthetic_0000-0400s.jsonl.gz": "mooncake",
            "burstgpt_1_rows1-40.csv": "burstgpt",
            "burstgpt_3_rows1-30.csv": "burstgpt",
            "servegen_deepseek-r1_top12_day0.tar.gz": "servegen",
            "weka_agentic_6sessions.tar.gz": "weka",
        }.items()
    ],
)
def test_public_traces_are_recognised(name: str, kind: str) -> None:
    assert recognised(SLICES / name, max_requests=5) == kind


# --- formats of other packages ---------------------------------------------------------------------------------------

PLUGIN = """
from pimserve.loadgen.traces.csv_rows import read_csv
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.trace_format import HasColumns, TraceFormat, csv_names

names = Columns("when", "p", "d", "us")
mine = TraceFormat("mine", "CSV with when, p, d", HasColumns(csv_names, ".csv"), read_csv, names)
none = 3
wrong = TraceFormat("wrong", "", lambda *_: 1 / 0, lambda *_: [][1], mine.columns)
"""


def test_tables_of_a_folder_that_are_not_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "part-1.jsonl").write_text(CONTENTS["mooncake"])
    (tmp_path / "README.md").write_text("about it")
    spec = TraceSpec(path=str(tmp_path))
    assert load_trace(spec).warnings == ()
    for number, name in enumerate(("azure", "vidur", "burstgpt", "burstgpt")):
        (tmp_path / f"{number}.csv").write_text(CONTENTS[name])
    trace = load_trace(spec)
    assert (trace.format, trace.rows_read) == ("mooncake", 1)
    (said,) = trace.warnings
    assert said.endswith("to be mooncake: other tables of its folder are not read (0.csv, 1.csv, 2.csv and 1 more)")
    assert load_trace(spec.model_copy(update={"format": "mooncake"})).warnings == ()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tables_of_an_archive_that_are_not_read_are_told(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "all.tar"

    def archive(*tables: tuple[str, str]) -> TraceSpec:
        with tarfile.open(path, mode) as tar:
            for name, content in tables:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
        return TraceSpec(path=str(path))

    part, about = ("part-1.jsonl", CONTENTS["mooncake"]), ("README.md", "about it")
    assert load_trace(archive(part, about)).warnings == ()
    others = [
        (f"{number}.csv", CONTENTS[kind]) for number, kind in enumerate(("azure", "vidur", "burstgpt", "burstgpt"))
    ]
    spec = archive(*others[:2], part, about, *others[2:])
    trace = load_trace(spec)
    assert (trace.format, trace.rows_read) == ("mooncake", 1)
    (said,) = trace.warnings
    assert said.endswith("to be mooncake: other tables of its archive are not read (0.csv, 1.csv, 2.csv and 1 more)")
    assert load_trace(spec.model_copy(update={"format": "mooncake"})).warnings == ()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    metadata = folder / "mine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[pimserve.traces]\n{points}\n")
    (folder / "trace_of_mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))


def test_a_package_adds_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trace").write_text("when,p,d\n0,1,2\n1500000,3,4\n")
    with pytest.raises(ValueError, match="must be one of auto, azure"):
        recognised(tmp_path / "trace", format="mine")
    install(tmp_path, monkeypatch, "mine = trace_of_mine:mine")
    assert format_names() == [*BUILT_IN_FORMATS, "mine"]
    assert TraceSpec.model_json_schema()["properties"]["format"]["enum"][-1] == "mine"
    assert recognised(tmp_path / "trace") == recognised(tmp_path / "trace", format="mine") == "mine"


def test_a_format_that_does_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trace").write_text("when,p,d\n0,1,2\n")
    install(tmp_path, monkeypatch, "wrong = trace_of_mine:wrong")
    with pytest.raises(InputError, match="format 'wrong' of trace_of_mine:wrong failed: ZeroDivisionError"):
        recognised(tmp_path / "trace")
    with pytest.raises(InputError, match="format 'wrong' of trace_of_mine:wrong failed: IndexError"):
        recognised(tmp_path / "trace", format="wrong")


def test_a_format_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trace").write_text("when,p,d\n0,1,2\n")
    install(tmp_path, monkeypatch, "none = trace_of_mine:none\ngone = trace_of_mine:gone")
    with pytest.raises(InputError, match="format 'none' of trace_of_mine:none is no TraceFormat"):
        recognised(tmp_path / "trace", format="none")
    with pytest.raises(InputError, match="format 'gone' of trace_of_mine:gone does not load: AttributeError"):
        recognised(tmp_path / "trace", format="gone")
