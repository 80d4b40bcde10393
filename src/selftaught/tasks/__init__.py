"""Worlds with exact answers, and loaders of real sets."""
