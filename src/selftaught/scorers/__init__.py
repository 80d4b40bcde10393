"""Scorers: verifiers, self-consistency, reward models, judges."""
