"""gRPC servers and channels: who may call, what requests may hold, and how errors cross the wire."""
