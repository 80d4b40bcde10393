"""Language models that improve themselves."""

__version__ = "0.1.0"
