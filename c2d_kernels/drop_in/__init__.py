"""mamba_ssm's and causal_conv1d's interface, in plain PyTorch around `selective_scan`."""
