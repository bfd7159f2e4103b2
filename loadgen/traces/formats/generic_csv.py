"""Any CSV with a header; pimserve's own `export` writes it with these names."""

from pimserve.loadgen.traces.csv_rows import read_csv
from pimserve.loadgen.traces.trace_format import OWN_NAMES, HasColumns, TraceFormat, csv_names

FORMAT = TraceFormat(
    "csv",
    "CSV with arrival_s, input_tokens, output_tokens",
    HasColumns(csv_names, ".csv"),
    read_csv,
    OWN_NAMES,
    open_names=True,
)
