"""Read shards back with webdataset's own reader."""

from pathlib import Path

from webdataset.tariterators import group_by_keys, tar_file_expander


def read_back(folder: Path) -> list[dict]:
    """Return every sample; the streams are ours, because `WebDataset` leaves its own open."""
    samples = []
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            source = {"url": str(path), "stream": stream}
            samples += group_by_keys(tar_file_expander([source]))
    return samples
