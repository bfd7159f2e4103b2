"""Metrics of runs, for Prometheus: which there are, how a run fills them, and how its client library exposes them.
Imports `distributed` and what is below it."""
