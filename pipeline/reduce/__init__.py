"""Reducers: one activation in, every per-image statistic of its units out."""
