"""Data: from shards (or the procedural world) to `EditBatch`; never imports `callbacks`."""
