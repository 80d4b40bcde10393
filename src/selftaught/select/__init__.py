"""Pure functions on rows: votes, pairs, filters."""
