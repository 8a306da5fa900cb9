"""HiT-SR's dual feature extraction: `dual_features`."""
