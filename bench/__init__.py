"""Benchmarks of Consilia: real processes, real TLS, one JSON line each. See README.md."""
