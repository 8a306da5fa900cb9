"""One file per network of `c2d_models`: one image forward, and one training step."""
