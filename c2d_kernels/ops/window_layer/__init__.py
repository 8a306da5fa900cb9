"""A whole layer of a transformer in windows: `window_layer` (SwinIR)."""
