"""Consilia: hospitals learn together, patients' data stay at home."""

__version__ = "0.1.0"
