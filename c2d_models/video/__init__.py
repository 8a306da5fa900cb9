"""Videos: clips read, enlarged frame by frame, and written, by PyAV (FFmpeg)."""
