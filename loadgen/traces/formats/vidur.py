"""Traces as Vidur processes them (microsoft/vidur)."""

from pimserve.loadgen.traces.csv_rows import read_csv
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.trace_format import HasColumns, TraceFormat, csv_names

FORMAT = TraceFormat(
    "vidur",
    "CSV with arrived_at (s), num_prefill_tokens, num_decode_tokens",
    HasColumns(csv_names, ".csv"),
    read_csv,
    Columns("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
)
