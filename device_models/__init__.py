"""Physics of one device, and of the language model that it runs. No I/O, no clock, no cluster."""
