"""Attention in windows with the norm before it and the skip around it: `attention_branch`."""
