"""Metrics of runs, for Prometheus: what families there are, how a run fills them, and how they are exposed. Imports
`distributed` and what is below it."""
