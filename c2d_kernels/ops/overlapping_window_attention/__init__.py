"""Attention in rectangular windows, with keys of a larger window and a dense bias (HAT, DAT)."""
