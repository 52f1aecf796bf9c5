"""`shards cache`: the networks of a model or of a recipe, run over a folder of shards."""

from pathlib import Path

import pytest

from emu_edit.batch import EncodedBatch
from emu_edit.cli.main import main
from emu_edit.cli.shards import DTYPES
from emu_edit.errors import InputError
from emu_edit.training.export import export_model
from tests.datamodules.cached_stage import batches
from tests.datamodules.toy_shards import make_folder
from tests.training.stage import SIZE, make_module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    make_folder(tmp_path / "pictures", {"local": 5, "add": 3})
    return tmp_path / "pictures"


def test_a_model_encodes_the_folder_at_its_own_size(pictures, tmp_path, capsys):
    export_model(make_module(), tmp_path / "model", ema=None)
    out = tmp_path / "cache"
    options = ["--model", str(tmp_path / "model"), "--device", "cpu", "--batch", "3"]
    assert main(["shards", "cache", str(pictures), "-o", str(out), *options]) == 0
    told = capsys.readouterr().out
    assert f"8 pairs of 2 tasks: latents without text features at {SIZE} px in float32" in told
    assert f"--data.train {out}" in told
    plain, latents = batches(pictures, global_batch=4), batches(out, global_batch=4)
    assert [b.key for b in plain] == [b.key for b in latents]
    assert main(["shards", "cache", str(pictures), "-o", str(out), *options]) == 0
    assert "3 shards were there already" in capsys.readouterr().out


def test_whose_networks_must_be_said(pictures, tmp_path, capsys):
    assert main(["shards", "cache", str(pictures), "-o", str(tmp_path / "cache")]) == 2
    assert "one of the arguments --model --config is required" in capsys.readouterr().err
    both = ["--model", "a", "--config", "smoke"]
    assert main(["shards", "cache", str(pictures), "-o", str(tmp_path / "cache"), *both]) == 2
    assert "--config: not allowed with argument --model" in capsys.readouterr().err


def test_the_precisions_offered_are_those_there_are():
    from datamodules.encoded.encoder import DTYPES as KNOWN

    assert set(DTYPES) == set(KNOWN)


@pytest.mark.slow
def test_a_recipe_encodes_with_the_networks_it_starts_from(pictures, tmp_path, capsys):
    options = ["--config", "smoke", "--image-size", "16", "--dtype", "bfloat16", "--device", "cpu"]
    assert main(["shards", "cache", str(pictures), "-o", str(tmp_path / "cache"), *options]) == 0
    assert "at 16 px in bfloat16" in capsys.readouterr().out
    (batch, *_) = batches(tmp_path / "cache")
    assert isinstance(batch, EncodedBatch)
    assert batch.target.shape == (8, 48, 4, 4)
    with pytest.raises(InputError, match=r"data\.image_size=32"):
        batches(tmp_path / "cache", image_size=32)
