"""Datasets of a site: the registry, and readers that turn them into typed columns."""
