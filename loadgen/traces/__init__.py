"""Recorded traces: request times and lengths from files, folders and archives, plain or compressed.

`trace_spec.py` says what is replayed, `load.py` selects and rescales it. `formats/` has a file for each format, which
`known_formats.py` finds and recognises; `csv_rows.py`, `jsonl_rows.py` and others read the kinds of files, `times.py`
what they write for a time, and `rows_read.py` checks every row.
"""

from pimserve.loadgen.traces.known_formats import BUILT_IN_FORMATS, format_names, recognise
from pimserve.loadgen.traces.load import (
    Trace,
    format_of,
    load_trace,
    slow_warning,
    ticks_warning,
    together_warning,
    trace_digest,
)
from pimserve.loadgen.traces.trace_files import find_trace
from pimserve.loadgen.traces.trace_spec import TraceSpec, parse_trace_argument

__all__ = [
    "BUILT_IN_FORMATS",
    "Trace",
    "TraceSpec",
    "find_trace",
    "format_names",
    "format_of",
    "load_trace",
    "parse_trace_argument",
    "recognise",
    "slow_warning",
    "ticks_warning",
    "together_warning",
    "trace_digest",
]
