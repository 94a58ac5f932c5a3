"""The one place that reads a SpatialData: sections, positions, pixels, expression and model inputs as arrays."""
