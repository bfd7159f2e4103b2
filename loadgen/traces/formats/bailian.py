"""Qwen-Bailian (alibaba-edu/qwen-bailian-usagetraces-anon): turns that follow each other, blocks of 16 tokens.

Times are in seconds; `parent_chat_id` is -1 for the first turn of a session. How long requests took is not recorded.
"""

from pimserve.loadgen.traces.jsonl_rows import read_jsonl
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.trace_format import HasColumns, TraceFormat, json_names

_COLUMNS = Columns(
    "timestamp",
    "input_length",
    "output_length",
    request="chat_id",
    parent="parent_chat_id",
    blocks="hash_ids",
    block_tokens=16,
    label="type",
)
FORMAT = TraceFormat(
    "bailian",
    "JSON Lines with timestamp (s), input_length, output_length, chat_id, parent_chat_id, and hash_ids of 16 tokens",
    HasColumns(json_names, ".jsonl", also=frozenset({"chat_id", "parent_chat_id"})),
    read_jsonl,
    _COLUMNS,
)
