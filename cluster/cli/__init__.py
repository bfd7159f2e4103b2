"""The command line, the only place that prints. Imports all of the cluster."""
