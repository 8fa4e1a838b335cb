"""Alembic migrations of the hub's database, run by consilia.hub.database."""
