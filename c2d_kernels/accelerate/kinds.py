"""The kinds of layers that are recognised, and those that are known but stay as they are."""

from .hit import HiTLayer
from .mambairv2 import AttentiveLayer, AttentiveStateSpace
from .plan import Plan
from .srformer import SRFormerLayer
from .swin import HybridAttentionLayer, SwinIRLayer
from .swin2sr import AuthorsSwin2SRLayer, HuggingFaceSwin2SRLayer

KINDS: tuple[type[Plan], ...] = (
    SwinIRLayer,
    SRFormerLayer,
    HybridAttentionLayer,
    AuthorsSwin2SRLayer,
    HuggingFaceSwin2SRLayer,
    HiTLayer,
    AttentiveLayer,
    AttentiveStateSpace,
)
"""In the order in which they are tried."""

UNSERVED = {
    "OCAB": "its keys come from a larger window than its queries, which no operator has yet",
    "DATB": "its windows are rectangular, which no operator has yet",
}
"""Layers of known networks that stay as they are, and why."""
