"""What all of the cluster stands on: files, locks, processes, wire tables and gRPC. Knows no scenario and no run."""
