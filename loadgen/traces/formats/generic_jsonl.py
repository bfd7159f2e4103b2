"""Any JSON Lines with an object in each."""

from pimserve.loadgen.traces.jsonl_rows import read_jsonl
from pimserve.loadgen.traces.trace_format import OWN_NAMES, HasColumns, TraceFormat, json_names

FORMAT = TraceFormat(
    "jsonl",
    "JSON Lines with the same names as csv",
    HasColumns(json_names, ".jsonl"),
    read_jsonl,
    OWN_NAMES,
    open_names=True,
)
