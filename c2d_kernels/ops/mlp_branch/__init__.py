"""An MLP with the norm before it and the skip around it: `mlp_branch`."""
