"""Photographs made larger."""
