"""The people's side of the hub: REST over TLS, for SDK, command line and browser."""
