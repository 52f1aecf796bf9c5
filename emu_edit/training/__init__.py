"""Training: the only part of the package that imports Lightning, besides its command line."""
