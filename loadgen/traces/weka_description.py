"""What agentic sessions (WEKA) say of themselves, session by session; turns of sub-agents are counted, no more."""

import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_TOKENS
from pimserve.loadgen.traces.figure_documents import length_document, prefix_document, rounded
from pimserve.loadgen.traces.prefix_reuse import prefix_reuse
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.loadgen.traces.rows import Selection
from pimserve.loadgen.traces.trace_files import members_named


def describe_weka(path: Path, selection: Selection) -> dict[str, Any]:
    """Each session by the name of its file, as far as its requests are in the window; the first by time of all."""
    found: dict[str, tuple[int, list[dict[str, Any]]]] = {}
    for member in members_named(path, ".json"):
        document = json.loads(member.content.read())
        entries = [each for each in document["requests"] if _is_good(each) and _inside(float(each["t"]), selection)]
        found[PurePosixPath(member.name).name.split(".")[0]] = document["block_size"], entries
    turns = sorted(
        (float(each["t"]), name, place)
        for name, (_, entries) in found.items()
        for place, each in enumerate(entries)
        if not _is_agent(each)
    )[: selection.max_requests]
    if not turns:
        raise InputError(str(path), "no request of a session itself lies in the window")
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
    for _, name, place in turns:
        kept[name].append(found[name][1][place])
    sessions = {}
    for name, (block_tokens, entries) in found.items():
        agents = [each for each in entries if _is_agent(each) and float(each["t"]) <= turns[-1][0]]
        if kept[name]:
            sessions[name] = _session(block_tokens, kept[name], agents)
    return {"sessions": sessions}


def _is_agent(entry: dict[str, Any]) -> bool:
    return bool(entry.get("type") == "subagent")


def _is_good(entry: Any) -> bool:  # noqa: ANN401 of JSON
    """Whether it is an entry that can be counted; what is wrong with others the reader of requests says."""
    if not isinstance(entry, dict) or _seconds(entry.get("t")) is None:
        return False
    if _is_agent(entry):
        return isinstance(entry.get("requests"), list)
    counts = (entry.get("in"), entry.get("out"))
    ids = entry.get("hash_ids")
    are_ids = isinstance(ids, list) and {*map(type, ids)} <= {int, str}
    return are_ids and all(type(tokens) is int and 0 < tokens <= MAX_TOKENS for tokens in counts)


def _seconds(value: object) -> float | None:
    return float(value) if type(value) in {int, float} and 0 <= value < math.inf else None  # type: ignore[arg-type, operator]


def _inside(time_s: float, selection: Selection) -> bool:
    return selection.start_s <= time_s and (selection.end_s is None or time_s < selection.end_s)


def _session(block_tokens: int, turns: list[dict[str, Any]], agents: list[dict[str, Any]]) -> dict[str, Any]:
    inputs = np.array([turn["in"] for turn in turns], np.int64)
    number: dict[int | str, int] = {}
    blocks = Ragged.of([[number.setdefault(each, len(number)) for each in turn["hash_ids"]] for turn in turns])
    return {
        "requests": len(turns),
        "duration_s": rounded(float(turns[-1]["t"]) - float(turns[0]["t"])),
        "api_time_sum_s": rounded(sum(_seconds(turn.get("api_time")) or 0.0 for turn in turns)),
        "think_time_sum_s": rounded(sum(_seconds(turn.get("think_time")) or 0.0 for turn in turns)),
        "input": length_document(inputs),
        "output": length_document([turn["out"] for turn in turns]),
        "floor_block_count_ok": bool((blocks.lengths == inputs // block_tokens).all()),
        "prefix_parent_only": prefix_document(prefix_reuse(blocks, block_tokens, inputs)),
        "subagents": len(agents),
        "subagent_requests": sum(len(agent["requests"]) for agent in agents),
    }
