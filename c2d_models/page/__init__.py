"""A page in the browser that enlarges photographs: `c2d serve`."""
