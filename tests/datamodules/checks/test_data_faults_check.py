"""Rows of the fault list that nobody sees in training, and that `shards check` therefore counts."""

from pathlib import Path

import pytest
from PIL import Image

from datamodules.shards.index import load_index
from datamodules.shards.manifest import ShardEntry
from emu_edit.files import sha256_of
from tests.datamodules.toy_shards import folder_of, sample
from tests.images.pictures import GREEN, RED, encoded


def palette(*, transparency: int) -> bytes:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, *GREEN])
    return encoded(image, transparency=transparency)


SEE_THROUGH = {
    "RGBA": encoded(Image.new("RGBA", (16, 16), (*RED, 0))),
    "half": encoded(Image.new("RGBA", (16, 16), (*RED, 200)), "WEBP", lossless=True),
    "LA": encoded(Image.new("LA", (16, 16), (90, 0))),
    "palette": palette(transparency=0),
}
OPAQUE = {
    "RGBA": encoded(Image.new("RGBA", (16, 16), (*RED, 255))),
    "LA": encoded(Image.new("LA", (16, 16), (40, 255))),
    "palette": palette(transparency=1),  # a colour that does not occur
    "RGB": encoded(Image.new("RGB", (16, 16), RED)),
}


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("name", SEE_THROUGH)
def test_transparent_pixels_are_a_warning_of_their_sample(tmp_path: Path, name: str, role: str):
    odd = sample("odd", **{role: SEE_THROUGH[name]})
    report = folder_of(tmp_path, [*sample("a"), *odd])
    assert report.is_good
    assert [(p.is_error, p.key, p.message) for p in report.problems] == [
        (False, "odd", f"the {role} has transparent pixels; they are shown white")
    ]
    header, row = report.rows()
    assert dict(zip(header, row, strict=True))["warnings"] == "1"


@pytest.mark.parametrize("name", OPAQUE)
def test_a_format_that_could_be_transparent_and_is_not_is_no_finding(tmp_path: Path, name: str):
    assert folder_of(tmp_path, [*sample("a", source=OPAQUE[name])]).problems == []


def test_a_key_that_ends_one_shard_and_begins_the_next_is_two_samples_and_an_error(tmp_path: Path):
    shards = ([*sample("a"), *sample("twin")], [*sample("twin"), *sample("c")])
    report = folder_of(tmp_path, *shards)
    for number, keys in enumerate(([b"a", b"twin"], [b"twin", b"c"])):
        path = tmp_path / f"local-{number:06d}.tar"
        entry = ShardEntry("local", path.name, path.stat().st_size, sha256_of(path), 2)
        assert load_index(path, entry)["key"].tolist() == keys
    assert [(p.file, p.key, p.message) for p in report.problems if p.is_error] == [
        (
            "local-000001.tar",
            "twin",
            "task local has this key in 2 shards: local-000000.tar, local-000001.tar",
        )
    ]
