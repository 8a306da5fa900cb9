"""`python -m c2d_kernels`: print what is here and what each operator would use."""

from .report import info

print(info())
