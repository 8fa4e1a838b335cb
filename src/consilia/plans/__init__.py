"""The training plan contract: what a researcher writes and a worker runs."""
