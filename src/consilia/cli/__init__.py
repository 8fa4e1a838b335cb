"""The `consilia` command."""
