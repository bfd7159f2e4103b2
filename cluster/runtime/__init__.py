"""Shards and devices in processes of their own: Ray actors that talk gRPC."""
