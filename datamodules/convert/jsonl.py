"""The layout of `folder`, given as the .jsonl file whose lines name the pictures."""

from datamodules.convert.converter import Converter
from datamodules.convert.folder import list_pairs

CONVERTER = Converter("jsonl", list_pairs)
