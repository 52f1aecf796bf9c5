"""Packaged configs: parts (model, data, callbacks, logger), `base.yaml`, and the recipes."""
