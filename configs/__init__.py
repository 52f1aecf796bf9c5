"""Packaged configs: parts (model, data, trainer, callbacks, logger) and the recipes in `train/`."""
