"""Datasets that a study pools at its data centre, as far as the hub has a part in it."""
