"""Datasets that a study pools at its data centre: at the site that sends, and there."""
