"""Workloads that are like a trace: `gap_fits.py`, `rate_fits.py` and `mmpp_fits.py` propose arrival processes,
`length_fits.py` laws of lengths, and `trace_fit.py` chooses by what they generate.
"""
