"""Aggregation and server-side strategies, as records of functions over explicit state."""
