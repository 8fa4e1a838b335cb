"""Exact statistics over numbers that sites have released, and over a site's own records."""
