"""The formats of traces: which columns are read, of which kind of file, and what of it is not modelled.

Layouts: Azure/AzurePublicDataset (2023, 2024, and the multimodal one of 2025, which adds NumImages); Mooncake FAST'25
(kvcache-ai/Mooncake; milliseconds, and prompts as blocks of 512 tokens in hash_ids); Vidur (microsoft/vidur, its
processed traces).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pimserve.loadgen.traces.csv_rows import read_csv
from pimserve.loadgen.traces.jsonl_rows import read_jsonl
from pimserve.loadgen.traces.rows import Columns, Selection, TraceRows

_OWN_NAMES = Columns("arrival_s", "input_tokens", "output_tokens")


@dataclass(frozen=True)
class TraceFormat:
    """A format: its reader, its columns, and for columns that are not read, what a user must know of that.

    `open_names`: the scenario may say what the columns are called.
    """

    title: str
    read: Callable[[Path, Columns, Selection], TraceRows]
    columns: Columns
    not_modelled: Mapping[str, str] = field(default_factory=dict)
    open_names: bool = False


TRACE_FORMATS: dict[str, TraceFormat] = {
    "azure": TraceFormat(
        "CSV with TIMESTAMP, ContextTokens, GeneratedTokens, as published for Azure LLM inference 2023, 2024 and 2025",
        read_csv,
        Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", "arrival_date"),
        {"NumImages": "images are not modelled: prompts are the trace's ContextTokens, encoding images takes no time"},
    ),
    "csv": TraceFormat("CSV with arrival_s, input_tokens, output_tokens", read_csv, _OWN_NAMES, open_names=True),
    "jsonl": TraceFormat("JSON Lines with the same names", read_jsonl, _OWN_NAMES, open_names=True),
    "mooncake": TraceFormat(
        "JSON Lines with timestamp (ms), input_length, output_length",
        read_jsonl,
        Columns("timestamp", "input_length", "output_length", "arrival_ms"),
        {"hash_ids": "reuse of prefixes is not modelled: hash_ids of the trace are ignored, every prompt is computed"},
    ),
    "vidur": TraceFormat(
        "CSV with arrived_at (s), num_prefill_tokens, num_decode_tokens",
        read_csv,
        Columns("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    ),
}
"""By name."""
