"""Converters: pairs of a user or of a public set become shards; what is refused is named, counted.

A converter lists pairs (places and texts only, no pixels); `run.convert` reads them one at a time,
refuses the broken ones with a reason, and streams the rest into shards of each task. The list of
converters is `registry`.
"""
