"""The serving engine in simulated time: batching, KV cache, routing of requests, SLO accounting."""
