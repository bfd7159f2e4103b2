"""Azure LLM inference traces (Azure/AzurePublicDataset): 2023, 2024, and the multimodal one of 2025 (NumImages)."""

from pimserve.loadgen.traces.csv_rows import read_csv
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.trace_format import HasColumns, TraceFormat, csv_names

FORMAT = TraceFormat(
    "azure",
    "CSV with TIMESTAMP, ContextTokens, GeneratedTokens, as published for Azure LLM inference 2023, 2024 and 2025",
    HasColumns(csv_names, ".csv"),
    read_csv,
    Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", "date"),
    {"NumImages": "images are not modelled: prompts are the trace's ContextTokens, encoding images takes no time"},
    long_name="azure_llm_csv",
)
