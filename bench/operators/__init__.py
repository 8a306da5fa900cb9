"""One file an operator of `c2d_kernels`: the reference, our kernels and the peers, side by side."""
