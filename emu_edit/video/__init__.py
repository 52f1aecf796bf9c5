"""Video: files to frames and back, and the picture editor on frames."""
