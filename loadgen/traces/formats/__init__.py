"""The formats of traces, a file for each, found by being here: its `FORMAT` is as `trace_format.py` describes."""
