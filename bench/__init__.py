"""The measurements of the project: `pytest bench --benchmark` (see bench/README.md)."""
