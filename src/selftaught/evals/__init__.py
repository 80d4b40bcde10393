"""Tasks x metrics with standard errors."""
