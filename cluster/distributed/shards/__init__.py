"""Shards behind gRPC."""
