"""The frozen networks that benchmarks measure with: CLIP and DINO, through transformers.

Only the networks of transformers are used, not its image processors: what happens to a picture is
in `Preprocess`, in sight. (torchmetrics' CLIP score has a processor of its own, too, and clips the
cosine at 0.) Projected features are asked of the modules themselves, because `get_image_features`
returned a tensor in transformers 4 and returns a record in 5.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ViTModel,
)
from transformers.utils import logging

from emu_edit.errors import InputError
from emu_edit.files import sha256_of
from emu_edit.metrics.backbone_files import (
    CLIP_FILES,
    DINO_FILES,
    TOKENIZER_FILES,
    local_folder,
    reading,
    weight_file,
)
from emu_edit.metrics.backbone_texts import TextReader, load_tokenizer
from emu_edit.metrics.preprocess import Preprocess
from emu_edit.models.sources import PartSource, first_line, quiet_transformers, refuse_missing
from emu_edit.models.surgery import freeze


class ClipBackbone:
    """CLIP's two halves: pictures and texts to features of one space.

    Equal inputs give bit-equal features, whatever they are asked together with: each goes through
    the network alone. So an untouched copy has no direction at all, not one of rounding errors.

    Attributes:
        sha256: of the weight file.
        max_tokens: longest text the model reads, marks at both ends included.
        logit_scale: what the model multiplies a cosine with: 100 for most CLIPs.
    """

    def __init__(
        self,
        model: CLIPModel,
        reader: TextReader,
        preprocess: Preprocess,
        *,
        sha256: str,
    ) -> None:
        self.sha256 = sha256
        self.max_tokens = reader.max_tokens
        self.logit_scale = model.logit_scale.exp().item()
        self._model = freeze(model)
        self._reader = reader
        self._preprocess = preprocess

    @staticmethod
    def load(
        name_or_path: str | Path,
        preprocess: Preprocess,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        mends_texts: bool = False,
        tokenizer: str | Path | None = None,
    ) -> "ClipBackbone":
        """Load a directory as `save_pretrained` writes it, or a hub name `owner/name`.

        PickScore is published without a tokenizer: `tokenizer` is the directory or hub name of a
        CLIP that has it.

        Raises:
            InputError: if it cannot be found or loaded, is no CLIP, or reads pictures of another
                size than `preprocess` cuts.
        """
        folder = local_folder(name_or_path, CLIP_FILES if tokenizer is None else DINO_FILES)
        texts = folder if tokenizer is None else local_folder(tokenizer, TOKENIZER_FILES)
        check_type(folder, "clip")
        model = cast(CLIPModel, load_network(CLIPModel.from_pretrained, folder))
        vision = cast(CLIPVisionConfig, model.config.vision_config)
        _check_size(folder, vision.image_size, preprocess)
        config = cast(CLIPTextConfig, model.config.text_config)
        reader = TextReader(
            load_tokenizer(texts, config.vocab_size, config.eos_token_id),
            max_tokens=config.max_position_embeddings,
            mends_texts=mends_texts,
        )
        nn.Module.to(model, device=device, dtype=dtype)  # in place
        sha256 = sha256_of(weight_file(folder))
        return ClipBackbone(model, reader, preprocess, sha256=sha256)

    @torch.no_grad()
    def images(self, pictures: Sequence[UInt8[Tensor, "3 _ _"]]) -> Float[Tensor, "n d"]:
        """Compute the projected features, not normalised, on the CPU.

        Raises:
            InputError: if the network returns NaN or infinity.
        """
        dim = self._model.visual_projection.out_features
        return feature_rows([self._image(self._preprocess(picture)) for picture in pictures], dim)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Compute the projected features, not normalised, on the CPU.

        A text that is too long is read up to where it fits, as published evaluations do it;
        `count_cut` counts them.

        Raises:
            InputError: if a text is not Unicode, or the network returns NaN or infinity.
        """
        dim = self._model.text_projection.out_features
        return feature_rows([self._text(text) for text in texts], dim)

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than the model reads."""
        return self._reader.count_cut(texts)

    def count_unmended(self, texts: Sequence[str]) -> int:
        """Count the texts whose encoding may be broken and could not be mended, without ftfy."""
        return self._reader.count_unmended(texts)

    def _image(self, pixels: Tensor) -> Tensor:
        batch = pixels[None].to(device=self._model.device, dtype=self._model.dtype)
        with in_full_precision():
            pooled = self._model.vision_model(pixel_values=batch).pooler_output
            return self._model.visual_projection(pooled)

    def _text(self, text: str) -> Tensor:
        ids = torch.tensor([self._reader.ids(text)], device=self._model.device)
        pooled = self._model.text_model(input_ids=ids).pooler_output
        return self._model.text_projection(pooled)


class DinoBackbone:
    """DINO's vision transformer: a picture to the class token of its last layer.

    Equal pictures give bit-equal features, as with `ClipBackbone`.

    Attributes:
        sha256: of the weight file.
    """

    def __init__(self, model: ViTModel, preprocess: Preprocess, *, sha256: str) -> None:
        self.sha256 = sha256
        self._model = freeze(model)
        self._preprocess = preprocess

    @staticmethod
    def load(
        name_or_path: str | Path,
        preprocess: Preprocess,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "DinoBackbone":
        """Load a directory as `save_pretrained` writes it, or a hub name `owner/name`.

        Raises:
            InputError: if it cannot be found or loaded, is no ViT, or reads pictures of another
                size than `preprocess` cuts.
        """
        folder = local_folder(name_or_path, DINO_FILES)
        check_type(folder, "vit")
        # the pooler is no part of DINO; a file that has one is read without it
        without_pooler = partial(ViTModel.from_pretrained, add_pooling_layer=False)
        model = cast(ViTModel, load_network(without_pooler, folder))
        _check_size(folder, model.config.image_size, preprocess)
        nn.Module.to(model, device=device, dtype=dtype)  # in place
        return DinoBackbone(model, preprocess, sha256=sha256_of(weight_file(folder)))

    @torch.no_grad()
    def images(self, pictures: Sequence[UInt8[Tensor, "3 _ _"]]) -> Float[Tensor, "n d"]:
        """Compute the class tokens after the last normalisation, on the CPU.

        Raises:
            InputError: if the network returns NaN or infinity.
        """
        dim = self._model.config.hidden_size
        return feature_rows([self._image(self._preprocess(picture)) for picture in pictures], dim)

    def _image(self, pixels: Tensor) -> Tensor:
        batch = pixels[None].to(device=self._model.device, dtype=self._model.dtype)
        with in_full_precision():
            return self._model(pixel_values=batch).last_hidden_state[:, 0]


def find_backbone(name: str, folder: Path | None) -> str | Path:
    """Find `folder`/owner--name for the hub name owner/name; without a folder it is the name.

    Raises:
        InputError: if the folder lacks it, saying how to get it.
    """
    if folder is None:
        return name
    place = folder / name.replace("/", "--")
    if not place.is_dir():
        raise InputError(
            f"no directory {place}, needs the backbone {name}; "
            f"get it with: hf download {name} --local-dir {place}"
        )
    return place


def load_network(from_pretrained: Callable[..., object], folder: Path) -> object:
    """Load a network in the precision of its file, quietly, without any missing weight.

    Raises:
        InputError: if its weights cannot be read, or one is missing.
    """
    file = weight_file(folder)
    with reading(file), _silent_transformers():
        loaded = from_pretrained(
            folder,
            use_safetensors=file.suffix == ".safetensors",
            weights_only=True,
            output_loading_info=True,
        )
    model, info = cast("tuple[object, dict[str, set[str]]]", loaded)
    refuse_missing(info["missing_keys"], PartSource(str(folder)))
    return model


def check_type(folder: Path, model_type: str) -> None:
    """Refuse (InputError) a directory whose config is of another type, e.g. "clip"."""
    try:
        found = AutoConfig.from_pretrained(folder).model_type
    except Exception as error:  # of a class that changes with the library's version
        raise InputError(f"cannot read {folder}/config.json: {first_line(error)}") from error
    if found != model_type:
        raise InputError(f"{folder} holds a model of type {found!r}, needs {model_type!r}")


def _check_size(folder: Path, side: object, preprocess: Preprocess) -> None:
    if side != preprocess.crop:
        raise InputError(
            f"{folder} reads pictures of side {side}, the protocol's preprocessing cuts "
            f"{preprocess.crop}; give the backbone that the protocol names"
        )


def feature_rows(features: Sequence[Float[Tensor, "1 d"]], dim: int) -> Float[Tensor, "n d"]:
    """Put features below each other on the CPU.

    Raises:
        InputError: if one holds NaN or infinity.
    """
    rows = torch.cat([torch.empty(0, dim), *(row.cpu() for row in features)])
    if not rows.isfinite().all():
        raise InputError(
            "the backbone returned NaN or infinity; its weights are damaged, or its dtype is too "
            "narrow: use float32"
        )
    return rows


def in_full_precision() -> AbstractContextManager[None]:
    """Keep cuDNN from convolving float32 in TF32, its default, and from choosing by speed."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Also keep away transformers' report of weights that are in the file and not used."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with quiet_transformers():
            yield
    finally:
        logging.set_verbosity(before)
