"""The border of pixels: range conversion, PIL conversion, resizing, writing."""

import stat

import numpy as np
import pytest
import torch
from PIL import Image

from emu_edit.errors import BadImageError, InputError
from emu_edit.images import (
    decode_rgb,
    encode_image,
    encode_png,
    format_of,
    from_pil,
    read_image,
    resize,
    save_png,
    to_float,
    to_pil,
    to_uint8,
    write_image,
)

EVERY_LEVEL = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)


@pytest.fixture
def picture(cpu_generator):
    return torch.randint(0, 256, (3, 12, 20), generator=cpu_generator, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_level_survives_ten_round_trips(dtype):
    image = EVERY_LEVEL
    for _ in range(10):
        image = to_uint8(to_float(image).to(dtype))
    assert torch.equal(image, EVERY_LEVEL)


def test_black_and_white_are_the_ends_of_the_range():
    levels = to_float(EVERY_LEVEL)
    assert levels.dtype == torch.float32
    assert (levels.min(), levels.max()) == (-1, 1)


def test_what_bfloat16_kept_is_rounded_to_the_nearest_level():
    stored = to_float(EVERY_LEVEL).bfloat16()
    exact = ((stored.double() + 1) * 127.5).round()
    assert torch.equal(to_uint8(stored).double(), exact)


def test_values_are_rounded_not_truncated():
    x = torch.full((3, 1, 1), 99.6 / 127.5 - 1)
    assert to_uint8(x).unique().tolist() == [100]


def test_values_outside_the_range_are_clamped():
    x = torch.tensor([-7.0, 7.0, torch.inf]).reshape(3, 1, 1)
    assert to_uint8(x).flatten().tolist() == [0, 255, 255]


def test_nan_is_refused_instead_of_becoming_some_grey():
    x = torch.zeros(2, 3, 4, 4)
    x[1, 2, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="holds NaN, needs numbers"):
        to_uint8(x)


def test_batches_and_frames_keep_their_leading_axes():
    images = EVERY_LEVEL.expand(2, 5, 3, 16, 16)
    assert torch.equal(to_uint8(to_float(images)), images)


def test_pil_and_back_is_the_identity(picture):
    assert to_pil(picture).size == (20, 12)
    assert torch.equal(from_pil(to_pil(picture)), picture)


def test_from_pil_leaves_its_argument_alone():
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    before = image.tobytes()
    assert from_pil(image).unique().tolist() == [255]
    assert (image.mode, image.tobytes()) == ("RGBA", before)


def test_from_pil_owns_its_memory():
    image = Image.new("RGB", (16, 16), (1, 1, 1))
    tensor = from_pil(image)
    tensor.fill_(9)
    assert image.getpixel((0, 0)) == (1, 1, 1)


def test_resize_to_the_same_size_changes_nothing(picture):
    assert torch.equal(resize(picture, (12, 20)), picture)


def test_resize_keeps_flat_colour_and_leading_axes():
    images = torch.full((2, 4, 3, 12, 20), 77, dtype=torch.uint8)
    resized = resize(images, (30, 9))
    assert resized.shape == (2, 4, 3, 30, 9)
    assert resized.unique().tolist() == [77]


def test_resize_down_averages_instead_of_picking_pixels():
    checkered = torch.zeros(3, 32, 32, dtype=torch.uint8)
    checkered[:, ::2, ::2] = checkered[:, 1::2, 1::2] = 200
    inner = resize(checkered, (8, 8))[:, 2:-2, 2:-2].float()
    assert (inner - 100).abs().max() <= 2


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_resize_to_nothing_is_refused(picture, size):
    with pytest.raises(ValueError, match="needs a height and a width of at least 1"):
        resize(picture, size)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.webp"])
def test_png_and_webp_are_written_lossless(tmp_path, picture, name):
    write_image(tmp_path / name, picture)
    assert torch.equal(read_image(tmp_path / name), picture)


def test_jpeg_is_written_close_to_the_picture(tmp_path):
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(3, 32, 64).contiguous()
    write_image(tmp_path / "a.jpeg", ramp)
    assert (read_image(tmp_path / "a.jpeg").int() - ramp.int()).abs().max() <= 6


def test_save_png_writes_what_encode_png_returns(tmp_path, picture):
    save_png(tmp_path / "a.png", picture)
    assert (tmp_path / "a.png").read_bytes() == encode_png(picture)
    assert torch.equal(decode_rgb(encode_png(picture)), picture)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")],
)
def test_write_image_writes_what_encode_image_returns(tmp_path, picture, name, kind):
    write_image(tmp_path / name, picture)
    assert format_of(tmp_path / name) == kind
    assert (tmp_path / name).read_bytes() == encode_image(picture, kind)


def test_an_existing_file_is_replaced_and_nothing_else_is_left(tmp_path, picture):
    save_png(tmp_path / "a.png", 255 - picture)
    save_png(tmp_path / "a.png", picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert torch.equal(read_image(tmp_path / "a.png"), picture)


def test_a_written_file_is_as_readable_as_any_other(tmp_path, picture):
    (tmp_path / "other").write_bytes(b"")
    save_png(tmp_path / "a.png", picture)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.exe"])
def test_an_unknown_extension_is_refused_with_the_allowed_ones(tmp_path, picture, name):
    with pytest.raises(InputError, match=r"cannot write .*, needs one of .png, .jpg, .jpeg, .webp"):
        write_image(tmp_path / name, picture)
    assert not list(tmp_path.iterdir())


def test_save_png_refuses_another_extension(tmp_path, picture):
    with pytest.raises(InputError, match=r"a.jpg: cannot write '.jpg', needs .png"):
        save_png(tmp_path / "a.jpg", picture)


def test_a_missing_folder_is_named(tmp_path, picture):
    with pytest.raises(InputError, match=r"cannot be written \(No such file.*writable folder .*no"):
        save_png(tmp_path / "no" / "a.png", picture)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, picture):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save_png(tmp_path / "a.png", picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_metadata_does_not_travel_through(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "SECRET PLACE"
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in.jpg", exif=exif, comment="SECRET PLACE")
    assert b"SECRET" in (tmp_path / "in.jpg").read_bytes()
    for name in ("out.jpg", "out.png", "out.webp"):
        write_image(tmp_path / name, read_image(tmp_path / "in.jpg"))
        assert b"SECRET" not in (tmp_path / name).read_bytes()


def test_from_pil_refuses_what_decoding_refuses():
    with pytest.raises(BadImageError, match="is 7x20, both sides need at least 8"):
        from_pil(Image.new("RGB", (7, 20)), where="drawn")
