"""The kinds of layers that are recognised, and those that are known but stay as they are."""

from .plan import Plan
from .swin import CosineLayer, HybridAttentionLayer, SwinIRLayer

KINDS: tuple[type[Plan], ...] = (SwinIRLayer, HybridAttentionLayer, CosineLayer)
"""In the order in which they are tried."""

UNSERVED = {
    "OCAB": "its keys come from a larger window than its queries, which no operator has yet",
    "Swin2SRLayer": "Hugging Face's layers are not recognised yet",
    "PSA_Block": "SRFormer's layers are not recognised yet",
    "DATB": "its windows are rectangular, which no operator has yet",
    "HierarchicalTransformerBlock": "HiT-SR's layers are not recognised yet",
    "AttentiveLayer": "MambaIRv2's layers are not recognised yet",
}
"""Layers of known networks that stay as they are, and why."""
