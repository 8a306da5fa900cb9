"""RGB at continuous positions, the HIIF family of decoders: `coordinate_query`."""
