"""Shards: tars of pairs with their index and the folder's manifest, written and read."""
