"""Runs spread over processes or Ray: hosts, shards, devices. Imports `run` and what is below it."""
