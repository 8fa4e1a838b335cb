"""The researcher's side: a typed client of the hub's REST API, studies and experiments."""
