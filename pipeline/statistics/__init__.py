"""Statistics of units over images, as plain functions from arrays to arrays."""
