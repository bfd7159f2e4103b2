"""Recorded traces: request times and lengths from files, plain or gzip-compressed.

`spec.py` says what is replayed, `load.py` selects and rescales it, `formats.py` is the table of formats; `csv_rows.py`
and `jsonl_rows.py` read the two kinds of file, `times.py` what they write for a time, and `rows.py` checks every row.
"""

from pimserve.loadgen.traces.formats import TRACE_FORMATS
from pimserve.loadgen.traces.load import Trace, load_trace, slow_warning, ticks_warning, trace_digest
from pimserve.loadgen.traces.trace_files import find_trace
from pimserve.loadgen.traces.trace_spec import TraceSpec, parse_trace_argument

__all__ = [
    "TRACE_FORMATS",
    "Trace",
    "TraceSpec",
    "find_trace",
    "load_trace",
    "parse_trace_argument",
    "slow_warning",
    "ticks_warning",
    "trace_digest",
]
