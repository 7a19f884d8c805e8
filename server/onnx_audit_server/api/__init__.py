"""The gRPC API: one thin servicer per service over the same stores and queue."""
