"""Pure tensor functions: torch only, no models, no rows."""
