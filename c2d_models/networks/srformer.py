"""SRFormer: permuted attention in windows of 16 x 16 or 24 x 24 (arXiv 2303.09735).

SwinIR with two parts exchanged. The keys and values are a quarter as wide and 2x2 tokens of them
are stacked into one, so that a window of four times the area costs as much; and the MLP has a 5x5
depthwise branch, which gives back the detail that the stacking hides. The layout is SwinIR's, and
so are the names in the authors' files.
"""

from torch import Tensor

from .fused import ConvFFN, PermutedWindowAttention, feed_forward, self_attention
from .registry import register
from .swinir import SWINIR_L, SWINIR_M, SwinIR, TransformerLayer


class SRFormerLayer(TransformerLayer):
    """Permuted self-attention layer: x + PSA(LN(x)), then x + ConvFFN(LN(x))."""

    attention_type = PermutedWindowAttention
    mlp_type = ConvFFN

    def forward(self, x: Tensor) -> Tensor:
        x = self_attention(x, self.norm1, self.attn)
        return feed_forward(x, self.norm2, self.mlp, norm_first=True)


class SRFormer(SwinIR):
    """SRFormer with one of SwinIR's up-samplers, or HIIF in their place (scale=None).

    Arguments as for SwinIR; window_size is a multiple of 4, since half of it, the shift, is even.
    """

    layer_type = SRFormerLayer


register("srformer_l", SRFormer, {**SWINIR_L, "window_size": 16})
register("srformer_m", SRFormer, {**SWINIR_M, "window_size": 24})
