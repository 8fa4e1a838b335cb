"""The node: holds data, decides what may run, runs it, releases what its owner allows."""
