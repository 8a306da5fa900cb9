"""What a user types, from start to finish."""
