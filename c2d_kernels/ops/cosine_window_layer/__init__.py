"""Swin V2's whole layer in windows: `cosine_window_layer` (Swin2SR)."""
