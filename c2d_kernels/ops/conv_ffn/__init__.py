"""SRFormer's feed-forward with the norm and skip around it: `conv_ffn`."""
