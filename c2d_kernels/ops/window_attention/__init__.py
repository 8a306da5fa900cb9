"""Attention in windows: `window_attention` (Swin) and `permuted_window_attention` (SRFormer)."""
