"""Correlation of tokens with a window's cells (HiT-SR): `spatial_correlation`."""
