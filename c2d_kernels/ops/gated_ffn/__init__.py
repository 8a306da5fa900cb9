"""A feed-forward gated by a depthwise convolution, with its norm and skip: `gated_ffn`."""
