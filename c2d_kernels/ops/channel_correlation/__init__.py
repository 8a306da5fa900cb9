"""Correlation of channels over windows (HiT-SR): `channel_correlation`."""
