"""The per-token part of a res-post-norm layer: `res_post_norm` (HiT-SR)."""
