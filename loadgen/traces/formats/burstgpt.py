"""BurstGPT (HPMLL/BurstGPT, CC-BY-4.0), in its three versions.

`BurstGPT_3` has Session ID and Elapsed time beside what the others have, hence columns by name. A row without response
tokens is a request that failed (its README). Elapsed time is how long the recorded system took for the whole request.
"""

from pimserve.loadgen.traces.burstgpt_description import describe_burstgpt
from pimserve.loadgen.traces.csv_rows import read_csv
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.trace_format import HasColumns, TraceFormat, csv_names

FORMAT = TraceFormat(
    "burstgpt",
    "CSV with Timestamp (s), Request tokens, Response tokens, if need be Session ID and Elapsed time; requests without "
    "response have failed and are left out",
    HasColumns(csv_names, ".csv"),
    read_csv,
    Columns(
        "Timestamp",
        "Request tokens",
        "Response tokens",
        session="Session ID",
        duration="Elapsed time",
        label="Model",
        fails_without_output=True,
    ),
    long_name="burstgpt_csv",
    describe=describe_burstgpt,
)
