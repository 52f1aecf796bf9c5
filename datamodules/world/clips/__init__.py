"""The world in motion: clips of scenes that move, edited frame by frame, with exact flow."""
