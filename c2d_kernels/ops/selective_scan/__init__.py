"""Mamba selective scan: `selective_scan`."""
