"""Any Parquet file; pyarrow reads it, which is installed with `pimserve[parquet]`."""

from collections.abc import Sequence

from pimserve.loadgen.traces.parquet_rows import read_parquet
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.trace_files import Head, is_named
from pimserve.loadgen.traces.trace_format import OWN_NAMES, TraceFormat


def _recognises(heads: Sequence[Head], _columns: Columns) -> bool:
    """By the magic bytes; what its columns are is at its end."""
    tables = [head for head in heads if head.alone or is_named(head.name, ".parquet")]
    return bool(tables) and all(head.data.startswith(b"PAR1") for head in tables)


FORMAT = TraceFormat(
    "parquet", "Parquet with the same names as csv", _recognises, read_parquet, OWN_NAMES, open_names=True
)
