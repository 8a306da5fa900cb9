"""Correlation in windows (HiT-SR): `channel_correlation` and `spatial_correlation`."""
