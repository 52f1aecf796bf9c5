"""Shard folders of other machines, fetched into a download cache of bounded size."""
