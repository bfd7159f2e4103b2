"""pimserve: serving large language models on near- and in-memory devices, simulated."""

__version__ = "0.1.0"
