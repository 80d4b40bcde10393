"""Stages on disk: typed Parquet tables, content-addressed, resumable."""
