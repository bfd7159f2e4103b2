"""A trace of every format is served, named by its path alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from pimserve.loadgen.traces import BUILT_IN_FORMATS
from pimserve.loadgen.workload import generate
from tests.cluster.documents import serve

ON = ["model=llama-3.1-8b", "cluster={device: h100, devices_per_node: 1}"]
BLOCKS = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}
LENGTHS = {"input_tokens": "{10: 0.25, 20: 0.75}", "output_tokens": "{1: 0.5, 3: 0.5}"}
TURN = {"t": 0, "type": "n", "in": 130, "out": 7, "hash_ids": [1, 2], "api_time": 2.0, "think_time": 0.5}
SESSION = {"block_size": 64, "requests": [TURN, {**TURN, "t": 3}, {**TURN, "t": 9}]}
OWN = "arrival_s,input_tokens,output_tokens\n0,5,5\n0.5,6,6\n"
FILES: dict[str, dict[str, str]] = {
    "azure": {"trace": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"},
    "bailian": {"trace": json.dumps({**BLOCKS, "chat_id": 1, "parent_chat_id": -1}) + "\n"},
    "burstgpt": {"trace": "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n9,GPT-4,0,0\n"},
    "csv": {"trace": OWN},
    "jsonl": {"trace": '{"arrival_s": 0, "input_tokens": 3, "output_tokens": 4}\n'},
    "mooncake": {"trace": json.dumps(BLOCKS) + "\n"},
    "servegen": {"c/chunk-0-trace.csv": "0,0.1,1,Gamma,1,1\n", "c/chunk-0-dataset.json": json.dumps({"0": LENGTHS})},
    "vidur": {"trace": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,591,140\n"},
    "weka": {"trace_1.json": json.dumps(SESSION), "trace_2.json": json.dumps(SESSION)},
}


def put(folder: Path, kind: str) -> Path:
    """The trace of that format: a file, or the folder of several."""
    if kind == "parquet":
        import pyarrow as pa  # noqa: PLC0415 as few tests as need it
        import pyarrow.parquet as pq  # noqa: PLC0415

        pq.write_table(pa.table({"arrival_s": [0.5], "input_tokens": [5], "output_tokens": [6]}), folder / "trace")
        return folder / "trace"
    for name, content in FILES[kind].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return folder / "trace" if "trace" in FILES[kind] else folder


@pytest.mark.parametrize("kind", BUILT_IN_FORMATS)
def test_every_format_is_served(tmp_path: Path, kind: str) -> None:
    path = put(tmp_path, kind)
    scenario = load_scenario(None, ON, str(path))
    summary, served = serve(prepare(scenario))
    assert summary["requests"]["finished"] == len(served.table) > 0
    assert f"{kind} trace {path}" in summary["workload"]
    rows = summary["trace_rows"]
    assert rows["read"] == len(served.table) + sum(rows["dropped"].values())


@pytest.mark.parametrize("replicas", [1, 3])
def test_turns_of_recorded_sessions_wait_for_each_other(tmp_path: Path, replicas: int) -> None:
    """Each is sent its think time after the last of what it waits for has ended; at the recorded times, none waits."""
    agent = {"t": 3, "type": "subagent", "requests": [TURN, {**TURN, "t": 2.5}]}  # which ends at 7.5
    for number in range(4):
        document = {"block_size": 64, "requests": [TURN, agent, {**TURN, "t": 9, "in": 2000 + number}]}
        (tmp_path / f"{number}.json").write_text(json.dumps(document))
    scenario = load_scenario(None, [*ON, f"cluster.replicas={replicas}"], str(tmp_path))
    summary, served = serve(prepare(scenario))
    assert summary["workload"] == f"16 requests; weka trace {tmp_path}; turns of recorded sessions, think_only"
    turns = generate(scenario.workload, 0).turns
    assert turns is not None
    arrival, finish = served.table["arrival_ps"], served.table["finish_ps"]
    parents = np.split(turns.parents, turns.begins[1:-1])
    assert sorted(map(len, parents)) == [0] * 4 + [1] * 8 + [2] * 4
    for request, before in enumerate(parents):
        due = max(finish[before], default=0) + (turns.think_ps[request] if len(before) else 0)
        assert 0 <= arrival[request] - due <= 1  # ends between two picoseconds count from the later one
    assert sorted(turns.think_ps[turns.followers] / 1e12) == [0.5] * 4 + [1] * 4 + [1.5] * 4
    recorded = load_scenario(None, [*ON, "workload.trace.timing=absolute"], str(tmp_path))
    assert (serve(prepare(recorded))[1].table["arrival_ps"] / 1e12).tolist() == [0] * 4 + [3] * 4 + [5.5] * 4 + [9] * 4
    with pytest.raises(InputError, match="max_concurrency: is of requests that come on their own"):
        serve(prepare(load_scenario(None, [*ON, "workload.max_concurrency=2"], str(tmp_path))))


def test_what_is_run_again_does_not_hang_on_what_is_recognised(tmp_path: Path) -> None:
    """The scenario written out names the format, and has the digest of one that names it."""
    path = put(tmp_path, "vidur")
    automatic, named = load_scenario(None, ON, str(path)), load_scenario(None, ON, f"vidur:{path}")
    assert automatic.resolved()["workload"]["trace"]["format"] == "vidur"
    assert prepare(automatic).digest == prepare(named).digest
    path.write_text("a,b,c\n")
    with pytest.raises(InputError, match="has none of the formats"):
        automatic.resolved()
