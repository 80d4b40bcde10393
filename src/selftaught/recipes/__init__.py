"""One file per method: paper(), gpu(), small(), smoke()."""
