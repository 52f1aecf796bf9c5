"""CLIP and DINO as benchmarks use them: against transformers, against plain numpy, and refusals."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from emu_edit.errors import InputError
from emu_edit.images import to_pil
from emu_edit.metrics import backbone_texts
from emu_edit.metrics.backbone_texts import mended
from emu_edit.metrics.backbones import ClipBackbone, DinoBackbone, find_backbone
from emu_edit.metrics.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from emu_edit.models.sources import quiet_transformers
from tests.metrics.tiny_backbones import (
    CLIP_CUT,
    DINO_CUT,
    LETTERS,
    MERGES,
    SIDE,
    clip_image,
    clip_text,
    dino_image,
    write_clip,
    write_dino,
    write_tokenizer,
)

TEXTS = ("a cat", "a dog", "the cat and the dog", "")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("backbones") / "clip")


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("backbones") / "dino")


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> ClipBackbone:
    return ClipBackbone.load(clip_folder, CLIP_CUT)


@pytest.fixture
def pictures(cpu_generator: torch.Generator) -> list[torch.Tensor]:
    # odd margins only where transformers, too, rounds them to even
    sizes = [(32, 32), (50, 40), (20, 60), (64, 32)]
    return [
        torch.randint(0, 256, (3, *size), generator=cpu_generator, dtype=torch.uint8)
        for size in sizes
    ]


def copy_of(folder: Path, place: Path) -> Path:
    shutil.copytree(folder, place)
    return place


def unpooled(features: object) -> torch.Tensor:
    """Return what transformers 4 gives as it is, and of transformers 5 the record's field."""
    return features if isinstance(features, torch.Tensor) else features.pooler_output  # type: ignore[attr-defined]


@torch.no_grad()
def test_clip_features_are_those_of_transformers(
    clip_folder: Path, clip: ClipBackbone, pictures: list[torch.Tensor]
):
    with quiet_transformers():
        model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    pixels = processor(images=[to_pil(p) for p in pictures], return_tensors="pt").pixel_values
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(
        list(TEXTS), return_tensors="pt", padding=True
    )
    images = unpooled(model.get_image_features(pixel_values=pixels))
    texts = unpooled(
        model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
    )
    torch.testing.assert_close(clip.images(pictures), images, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clip.texts(TEXTS), texts, rtol=1e-5, atol=1e-5)
    # the inputs differ enough for the comparison to mean something
    assert torch.pdist(images).min() > 0.1
    assert torch.pdist(texts).min() > 0.1


@torch.no_grad()
def test_dino_features_are_the_class_tokens_of_transformers(
    dino_folder: Path, pictures: list[torch.Tensor]
):
    with quiet_transformers():
        model = ViTModel.from_pretrained(dino_folder).eval()
    processor = ViTImageProcessorPil(
        size={"shortest_edge": DINO_CUT.short_side},
        resample=3,
        do_center_crop=True,
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    pixels = processor(images=[to_pil(p) for p in pictures], return_tensors="pt").pixel_values
    expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    ours = DinoBackbone.load(dino_folder, DINO_CUT).images(pictures)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert torch.pdist(expected).min() > 0.1


def test_a_second_computation_in_numpy_agrees(
    clip_folder: Path, dino_folder: Path, pictures: list[torch.Tensor]
):
    clip = ClipBackbone.load(clip_folder, CLIP_CUT, dtype=torch.float64)
    dino = DinoBackbone.load(dino_folder, DINO_CUT, dtype=torch.float64)
    images, tokens, texts = clip.images(pictures), dino.images(pictures), clip.texts(["a cat"])
    for i, picture in enumerate(pictures):
        of_clip = clip_image(clip_folder, CLIP_CUT(picture).numpy())
        of_dino = dino_image(dino_folder, DINO_CUT(picture).numpy())
        np.testing.assert_allclose(images[i].numpy(), of_clip, rtol=0, atol=1e-9)
        np.testing.assert_allclose(tokens[i].numpy(), of_dino, rtol=0, atol=1e-9)
    vocabulary = json.loads((clip_folder / "vocab.json").read_text())
    ids = [vocabulary[token] for token in ("<|startoftext|>", "a</w>", "cat</w>", "<|endoftext|>")]
    np.testing.assert_allclose(texts[0].numpy(), clip_text(clip_folder, ids), rtol=0, atol=1e-9)


def test_equal_inputs_have_bit_equal_features_in_any_company(
    clip: ClipBackbone, dino_folder: Path, pictures: list[torch.Tensor]
):
    dino = DinoBackbone.load(dino_folder, DINO_CUT)
    for backbone in (clip, dino):
        together = backbone.images([*pictures, pictures[1].clone()])
        assert torch.equal(together[1], together[4])
        assert torch.equal(together[1], backbone.images([pictures[1]])[0])
    alone = clip.texts(["a cat"])
    assert torch.equal(alone[0], clip.texts(["the cat and the dog", "a cat"])[1])


def test_no_inputs_are_no_rows(clip: ClipBackbone, dino_folder: Path):
    assert clip.images([]).shape == clip.texts([]).shape == (0, 12)
    assert DinoBackbone.load(dino_folder, DINO_CUT).images([]).shape == (0, 16)


def test_features_are_computed_in_the_dtype_asked_for(clip_folder: Path, pictures):
    exact = ClipBackbone.load(clip_folder, CLIP_CUT, dtype=torch.float64).images(pictures)
    half = ClipBackbone.load(clip_folder, CLIP_CUT, dtype=torch.bfloat16).images(pictures)
    assert exact.dtype == torch.float64
    difference = (half.double() - exact).abs().max()
    assert 1e-4 < difference < 0.5


def test_a_long_text_is_read_up_to_77_tokens_and_counted(clip: ClipBackbone):
    fits = " ".join("b" * 75)
    assert clip.max_tokens == 77
    assert clip.count_cut([fits, f"{fits} c", "a cat"]) == 1
    assert torch.equal(clip.texts([f"{fits} c d"]), clip.texts([f"{fits} e f"]))
    assert not torch.equal(clip.texts([f"{fits}"]), clip.texts([" ".join("b" * 74)]))


def test_a_megabyte_of_text_is_cut_before_it_is_tokenized(
    clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    tokenize = type(clip._reader._tokenizer).__call__

    def watched(self: object, text: str, **arguments: object):
        asked.append(len(text))
        return tokenize(self, text, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(clip._reader._tokenizer), "__call__", watched)
    endless = "cat dog " * 200_000
    clip.texts([endless])
    assert clip.count_cut([endless, "a cat"]) == 1
    assert asked == [2000, len("a cat")]


def test_a_typed_end_mark_does_not_end_the_text(clip: ClipBackbone):
    marked = clip.texts(["<|endoftext|> a cat", "<|endoftext|> a dog"])
    assert not torch.equal(marked[0], marked[1])


def test_a_text_that_is_not_unicode_is_refused(clip: ClipBackbone):
    with pytest.raises(
        InputError, match=r"the text 'a \\ud800 cat' has a lone surrogate, .* UTF-8"
    ):
        clip.texts(["a cat", "a \ud800 cat"])


def test_captions_are_mended_as_by_openai_where_the_protocol_says_so(
    clip_folder: Path, clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
):
    # HTML is undone twice, as in tables of the web; the tokenizer sees what a person would
    mending = ClipBackbone.load(clip_folder, CLIP_CUT, mends_texts=True)
    written, meant = ["a c&#97;t", "a c&amp;#97;t ", "a dog"], ["a cat", "a cat", "a dog"]
    assert torch.equal(mending.texts(written), clip.texts(meant))
    assert not torch.equal(clip.texts(written)[0], clip.texts(meant)[0])
    broken = "a d\u00c3\u00b6g"
    monkeypatch.setattr(backbone_texts, "fix_text", None)
    assert mended(broken) == broken
    assert (mending.count_unmended([broken, "a cat"]), clip.count_unmended([broken])) == (1, 0)
    monkeypatch.setattr(backbone_texts, "fix_text", lambda text: text.replace("\u00c3\u00b6", "o"))
    assert torch.equal(mending.texts([broken]), clip.texts(["a dog"]))
    assert mending.count_unmended([broken]) == 0


def test_a_broken_encoding_is_mended_with_ftfy():
    pytest.importorskip("ftfy", reason="an optional library")
    assert (
        mended(" it\u00e2\u20ac\u2122s a caf\u00c3\u00a9 &amp;amp; bar ")
        == "it's a caf\u00e9 & bar"
    )


def test_the_networks_are_frozen(clip: ClipBackbone, pictures: list[torch.Tensor]):
    assert not clip._model.training
    assert not any(parameter.requires_grad for parameter in clip._model.parameters())
    assert not clip.images(pictures).requires_grad


def test_the_hash_is_that_of_the_weight_file(clip: ClipBackbone, clip_folder: Path):
    data = (clip_folder / "model.safetensors").read_bytes()
    assert clip.sha256 == hashlib.sha256(data).hexdigest()


def test_nothing_is_printed_about_weights_that_are_not_used(
    dino_folder: Path, capfd: pytest.CaptureFixture[str]
):
    DinoBackbone.load(dino_folder, DINO_CUT)  # its file has a pooler
    assert capfd.readouterr() == ("", "")


def as_pickle(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def test_weights_in_a_bin_file_are_read_without_running_code(
    dino_folder: Path, tmp_path: Path, pictures: list[torch.Tensor]
):
    folder = copy_of(dino_folder, tmp_path / "dino")
    weights = as_pickle(folder)
    ours, same = DinoBackbone.load(folder, DINO_CUT), DinoBackbone.load(dino_folder, DINO_CUT)
    assert torch.equal(ours.images(pictures), same.images(pictures))
    assert ours.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest() != same.sha256

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    message = r"pytorch_model.bin: it is damaged, or holds more than weights, which is never run"
    for trapped in (
        lambda: torch.save({"embeddings.cls_token": Trap()}, weights),
        lambda: weights.write_bytes(pickle.dumps(Trap(), protocol=2)),
    ):
        trapped()
        with pytest.raises(InputError, match=message):
            DinoBackbone.load(folder, DINO_CUT)
    assert not (tmp_path / "ran").exists()


def test_a_backbone_is_found_in_a_folder_under_its_name(tmp_path: Path):
    (tmp_path / "facebook--dino-vits16").mkdir()
    assert find_backbone("facebook/dino-vits16", tmp_path) == tmp_path / "facebook--dino-vits16"
    assert find_backbone("facebook/dino-vits16", None) == "facebook/dino-vits16"
    with pytest.raises(InputError) as caught:
        find_backbone("openai/clip-vit-base-patch32", tmp_path)
    place = tmp_path / "openai--clip-vit-base-patch32"
    assert str(caught.value) == (
        f"no directory {place}, needs the backbone openai/clip-vit-base-patch32; "
        f"get it with: hf download openai/clip-vit-base-patch32 --local-dir {place}"
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no hub."""
    place = tmp_path / "hub"
    place.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return place


def test_a_backbone_that_was_downloaded_is_taken_from_the_hubs_cache(
    cache: Path, clip_folder: Path, pictures: list[torch.Tensor], clip: ClipBackbone
):
    repository = cache / "models--openai--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    copy_of(clip_folder, repository / "snapshots" / ("0" * 40))
    found = ClipBackbone.load("openai/tiny", CLIP_CUT)
    assert torch.equal(found.images(pictures), clip.images(pictures))


@pytest.mark.usefixtures("cache")
def test_without_the_hub_one_line_says_how_to_get_a_backbone():
    message = (
        r"cannot get the backbone openai/tiny from the hub: .*; where there is network: "
        r"hf download openai/tiny --local-dir BACKBONES/openai--tiny, then --backbones BACKBONES"
    )
    with pytest.raises(InputError, match=message) as caught:
        ClipBackbone.load("openai/tiny", CLIP_CUT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./a", Path("some/where"), "/no/where"])
def test_what_is_neither_directory_nor_hub_name_is_refused(name: str | Path):
    with pytest.raises(InputError, match=r"no directory .*, and it is no hub name; a backbone"):
        DinoBackbone.load(name, DINO_CUT)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "model.safetensors or pytorch_model.bin"),
        ("tokenizer.json", "tokenizer.json or vocab.json"),
    ],
)
def test_an_incomplete_directory_is_refused(
    clip_folder: Path, tmp_path: Path, lost: str, named: str
):
    folder = copy_of(clip_folder, tmp_path / "clip")
    (folder / lost).unlink()
    (folder / "vocab.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match=f"clip has no {named}, needs a whole backbone"):
        ClipBackbone.load(folder, CLIP_CUT)


def test_another_kind_of_network_is_refused(clip_folder: Path, dino_folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match="holds a model of type 'clip', needs 'vit'"):
        DinoBackbone.load(clip_folder, DINO_CUT)
    folder = copy_of(dino_folder, tmp_path / "dino")
    write_tokenizer(folder)
    with pytest.raises(InputError, match="holds a model of type 'vit', needs 'clip'"):
        ClipBackbone.load(folder, CLIP_CUT)
    for damaged in ("{", "[]", '{"model_type": "vit", "hidden_size": "x"}'):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(InputError, match=r"cannot read .*config.json: "):
            DinoBackbone.load(folder, DINO_CUT)


def test_a_backbone_of_another_input_size_is_refused(clip_folder: Path, dino_folder: Path):
    larger = Preprocess(
        short_side=40, filter="bicubic", crop=40, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    for load, folder in ((ClipBackbone.load, clip_folder), (DinoBackbone.load, dino_folder)):
        with pytest.raises(InputError, match=r"reads pictures of side 32, .* cuts 40; give"):
            load(folder, larger)


def test_damaged_and_missing_weights_are_refused(
    dino_folder: Path, tmp_path: Path, pictures: list[torch.Tensor]
):
    folder = copy_of(dino_folder, tmp_path / "dino")
    path = folder / "model.safetensors"
    whole = load_file(path)
    save_file({k: v for k, v in whole.items() if "cls_token" not in k}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights, e.g. embeddings.cls_token"):
        DinoBackbone.load(folder, DINO_CUT)
    save_file({k: v * float("nan") for k, v in whole.items()}, path, {"format": "pt"})
    with pytest.raises(InputError, match="the backbone returned NaN or infinity; its weights"):
        DinoBackbone.load(folder, DINO_CUT).images(pictures)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cannot load .*; if damaged, download it again"):
        DinoBackbone.load(folder, DINO_CUT)


def test_a_tokenizer_of_another_model_is_refused(clip_folder: Path, tmp_path: Path):
    folder = copy_of(clip_folder, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == 2 * len(LETTERS) + len(MERGES) + 1
    config["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"ends a text with 63, .* expects 7; they belong to"):
        ClipBackbone.load(folder, CLIP_CUT)
    for damaged in ("{}", "{", '{"model": 3}'):
        (folder / "tokenizer.json").write_text(damaged)
        with pytest.raises(InputError, match="cannot load the tokenizer of"):
            ClipBackbone.load(folder, CLIP_CUT)


@torch.no_grad()
def test_a_published_config_that_says_end_mark_2_works_too(
    clip_folder: Path, tmp_path: Path, clip: ClipBackbone
):
    folder = copy_of(clip_folder, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2  # openai/clip-vit-base-patch32 has it
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(ClipBackbone.load(folder, CLIP_CUT).texts(TEXTS), clip.texts(TEXTS))
