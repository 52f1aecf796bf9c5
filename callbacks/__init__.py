"""Callbacks that watch training: they import the model package, never the data modules."""
