"""Mooncake FAST'25 (kvcache-ai/Mooncake): prompts as blocks of 512 tokens, one id for each block that is begun."""

from pimserve.loadgen.traces.jsonl_rows import read_jsonl
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.trace_format import HasColumns, TraceFormat, json_names

FORMAT = TraceFormat(
    "mooncake",
    "JSON Lines with timestamp (ms), input_length, output_length, and hash_ids of 512 tokens",
    HasColumns(json_names, ".jsonl", without=frozenset({"chat_id"})),
    read_jsonl,
    Columns("timestamp", "input_length", "output_length", "ms", blocks="hash_ids", block_tokens=512),
    long_name="mooncake_jsonl",
)
