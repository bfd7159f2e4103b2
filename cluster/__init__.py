"""Many devices: topology, placement, scenarios, runs and the command line."""
