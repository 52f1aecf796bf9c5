"""The encoder cache: shards of what the frozen networks give for pairs, made once for training."""
