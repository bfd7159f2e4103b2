"""The service: simulations launched, watched, queried and changed over gRPC."""
