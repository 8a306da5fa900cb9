"""Commands as a user types them, from start to finish."""
