from pathlib import Path

import torch

from emu_edit.images import read_image, save_png, write_image


def test_a_file_may_be_named_by_a_string_or_a_path(tmp_path: Path):
    image = torch.arange(3 * 16 * 16).remainder(256).to(torch.uint8).reshape(3, 16, 16)
    save_png(str(tmp_path / "a.png"), image)
    write_image(str(tmp_path / "b.png"), image)
    for name in ("a.png", "b.png"):
        assert torch.equal(read_image(str(tmp_path / name)), image)
        assert torch.equal(read_image(tmp_path / name), image)
