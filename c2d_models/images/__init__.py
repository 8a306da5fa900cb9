"""Photographs: files, MATLAB's reduction, sets of LR and HR."""
