"""Checks of shard folders: every byte and pixel of them, and evaluation pictures among them."""
