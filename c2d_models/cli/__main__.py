"""`python -m c2d_models.cli`, for torchrun."""

import sys

from . import main

sys.exit(main())
