"""Loading, building and decoding of transformers models."""
