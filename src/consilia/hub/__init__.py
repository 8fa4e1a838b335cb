"""The hub: coordinates studies and rounds; holds plans, aggregates, versions and audit."""
