"""Scores of networks on image sets."""
