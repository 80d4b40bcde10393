"""Losses on a model and a batch."""
