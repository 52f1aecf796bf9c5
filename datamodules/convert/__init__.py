"""Converters: a user's own pairs become shards, and what cannot be used is named and counted.

A converter lists pairs (names and texts only, no pictures); `convert` reads them one at a time,
refuses the broken ones with a reason, and streams the rest into shards, one task after the other.
"""

from datamodules.convert.run import KINDS, ConvertReport, convert

__all__ = ["KINDS", "ConvertReport", "convert"]
