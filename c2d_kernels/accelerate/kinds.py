"""The kinds of layers that are recognised, and those that are known but stay as they are."""

from .dat import AdaptiveSpatialAttention, DualAggregationLayer
from .hit import HiTLayer
from .mambairv2 import AttentiveLayer, AttentiveStateSpace
from .overlapping import OverlappingAttention
from .plan import Plan
from .srformer import SRFormerLayer
from .swin import HybridAttentionLayer, SwinIRLayer
from .swin2sr import AuthorsSwin2SRLayer, HuggingFaceSwin2SRLayer

KINDS: tuple[type[Plan], ...] = (
    SwinIRLayer,
    SRFormerLayer,
    HybridAttentionLayer,
    OverlappingAttention,
    DualAggregationLayer,
    AdaptiveSpatialAttention,
    AuthorsSwin2SRLayer,
    HuggingFaceSwin2SRLayer,
    HiTLayer,
    AttentiveLayer,
    AttentiveStateSpace,
)
"""In the order in which they are tried."""

UNSERVED = {
    "Adaptive_Channel_Attention": "no operator attends from channel to channel",
}
"""Layers of known networks that stay as they are, and why."""
