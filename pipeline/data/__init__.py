"""Datasets: sources of pictures, their ordered index, decoding and loading."""
