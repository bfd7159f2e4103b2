"""Physics of one device, and of the language model that it runs. No clock, no cluster, no I/O but the catalogue."""
