"""Datasets: the sources of pictures, the ordered index of a dataset, decoding and loading."""
