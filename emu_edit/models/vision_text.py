"""Text features of a language model that sees the source picture, as Qwen-Image-Edit is told.

The picture stands before the instruction in the message, so what the text means depends on it, and
there is a null text for every picture. Marks of the template that a user types are encoded as the
letters they are, which stock pipelines do not do. Places of cells of the picture are those the
model was trained with, (start, row, column); the pipeline of diffusers loses them with transformers
5 and counts cells like words (huggingface/diffusers#14194).
Source: the Qwen-Image-Edit Plus pipeline of diffusers (template, the 64 tokens it drops, sizes);
Qwen2.5-VL, arXiv:2502.13923, and its processor in transformers (patches, places).
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64
from PIL.Image import Resampling
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoModelForImageTextToText

from emu_edit.errors import InputError
from emu_edit.files import write_json
from emu_edit.images import to_pil, to_uint8
from emu_edit.models.chat_text import count_around, load_chat, plain_ids
from emu_edit.models.directory import INDEX, read_json
from emu_edit.models.interfaces import TextEncoder, TextFeatures, TextLimit
from emu_edit.models.sources import PartSource, find_part, refuse_unrunnable
from emu_edit.models.surgery import freeze
from emu_edit.models.text import (
    padded,
    refuse_other_vocabulary,
    write_parts,
)

BEFORE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "
    "texture, objects, background), then explain how the user's text instruction should alter or "
    "modify the image. Generate a new image that meets the user's requirements while maintaining "
    "consistency with the original input where appropriate.<|im_end|>\n<|im_start|>user\n"
    "Picture 1: <|vision_start|>"
)
CELL = "<|image_pad|>"  # once for every cell of the picture
BETWEEN = "<|vision_end|>"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
DROPPED = 64  # tokens, up to the user's message
AREA, MULTIPLE = 384 * 384, 32  # of the picture that is shown, in pixels
# of CLIP's training pictures, in [0, 1]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FIRST = "QwenImageEditPipeline"  # of the model of August 2025, with another template


class VisionText(TextEncoder):
    """A frozen Qwen2.5-VL that is shown the source picture, in the precision of its file.

    Args:
        path: model directory (`text_encoder/` and `tokenizer/` inside), or a hub name
            `owner/name/text_encoder`; safetensors only.
        max_tokens: longest text in tokens, with its template and without the picture's.

    Attributes:
        template: what stands before the picture, and what after the text.
        of: the models whose text encoder it is, for messages.
        processor: folder of the processor in their pipelines.

    Raises:
        InputError: if it cannot be found or loaded, is another model, or its tokenizer has no token
            for pictures.
    """

    sees_pictures = True
    template: ClassVar = (BEFORE, AFTER)
    of: ClassVar = "Qwen-Image-Edit-2509 or 2511"
    processor: ClassVar = "processor"

    def __init__(self, path: str, max_tokens: int = 1024) -> None:
        super().__init__()
        self.source = find_part(path, "text_encoder")
        self._refuse_relatives()
        model, self.tokenizer = load_chat(self.source, AutoModelForImageTextToText)
        self.model: Any = freeze(model)
        config = self.model.config
        if config.model_type != "qwen2_5_vl":
            raise InputError(
                f"{self.source} is a {config.model_type}, needs a qwen2_5_vl; the text encoder of "
                f"{self.of} is one"
            )
        before, after = self.template
        parts = self.tokenizer([before, CELL, BETWEEN, after], add_special_tokens=False)
        self.before, self.cell, self.between, self.after = parts["input_ids"]
        if self.cell != [config.image_token_id]:
            raise InputError(
                f"{self.source}: its tokenizer has no {CELL}, the model's token "
                f"{config.image_token_id}; they belong to different models"
            )
        refuse_other_vocabulary(self.model, self.tokenizer, self.source)
        eye = config.vision_config
        self.patch, self.frames = int(eye.patch_size), int(eye.temporal_patch_size)
        self.merged = int(eye.spatial_merge_size)
        self.dim = int(config.text_config.hidden_size)
        self.max_tokens = max_tokens
        self.around, self.dropped = len(self._row("", 0)), DROPPED
        picture = torch.zeros(2, 3, MULTIPLE, MULTIPLE)
        refuse_unrunnable(lambda: self(("a", ""), picture).tokens, str(self.source))

    @property
    def limit(self) -> TextLimit:
        """Return what a text has to be within; it goes to other processes with the tokenizer."""
        return TextLimit(self.max_tokens, partial(count_around, self.tokenizer, self.around))

    def tokenize(
        self, texts: tuple[str, ...] | list[str], cells: int = 1
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids, with so many for a picture, and which are no padding, on the CPU.

        Raises:
            InputError: if a text is too long.
        """
        rows = [self._row(text, cells) for text in texts]
        most, what = self.max_tokens, " with its template"
        return padded(self.tokenizer, texts, rows, most=most, beside=cells, what=what)

    def _row(self, text: str, cells: int) -> list[int]:
        words = plain_ids(self.tokenizer, text)
        return [*self.before, *self.cell * cells, *self.between, *words, *self.after]

    def forward(
        self,
        texts: tuple[str, ...] | list[str],
        pictures: Float[Tensor, "b 3 H W"] | None = None,
    ) -> TextFeatures:
        """Encode each text with its picture, pixels in [-1, 1], on the model's device.

        Under `FakeTensorMode` the features have their shape, and the model is not run.

        Raises:
            InputError: if there are no pictures.
        """
        if pictures is None:
            raise InputError(
                "this model's text encoder sees the source picture, and here is none; give it a "
                "picture to edit"
            )
        height, width = self._size(*pictures.shape[-2:])
        rows, columns = (side // self.patch // self.merged for side in (height, width))
        ids, mask = self.tokenize(texts, rows * columns)
        device, told = self.model.device, self._told(mask[:, self.dropped :])
        if isinstance(pictures, FakeTensor):
            tokens = torch.zeros(*told.shape, self.dim, device=device)
            return TextFeatures(tokens.to(self.model.dtype), told.to(device))
        patches = [self._patches(picture, height, width) for picture in to_uint8(pictures).cpu()]
        grid = torch.tensor([[1, rows * self.merged, columns * self.merged]]).repeat(len(texts), 1)
        tokens = self.model.base_model(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            position_ids=self._places(mask, rows, columns).to(device),
            pixel_values=torch.cat(patches).to(device, self.model.dtype),
            image_grid_thw=grid.to(device),
            use_cache=False,
        ).last_hidden_state
        return TextFeatures(tokens[:, self.dropped :], told.to(device))

    def _told(self, mask: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
        """Return which features the denoiser attends to, given which are of no padding."""
        return mask

    def _places(self, mask: Bool[Tensor, "b l"], rows: int, columns: int) -> Int64[Tensor, "3 b l"]:
        """Return where the tokens are for the model; of padding nobody sees anything here."""
        along = places(len(self.before), rows, columns, mask.shape[1])
        return along[:, None].expand(-1, len(mask), -1)

    def _resized(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return to which sides the pipeline resizes a picture, one after the other."""
        return [shown_size(height, width)]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Return the sides of the picture that the model sees: whole cells."""
        cell, shown = self.patch * self.merged, self._resized(height, width)[-1]
        high, wide = (max(round(side / cell), 1) * cell for side in shown)
        return high, wide

    def _patches(self, picture: Tensor, height: int, width: int) -> Float[Tensor, "n d"]:
        """Return the patches of a picture in bytes, those of a cell together, as in a still film.

        It is resized as the pipeline and then the processor do.
        """
        shown = to_pil(picture)
        for high, wide in self._resized(*picture.shape[-2:]):
            shown = shown.resize((wide, high), Resampling.LANCZOS)
        seen = np.asarray(shown.resize((width, height), Resampling.BICUBIC), dtype=np.float32)
        levels = (torch.from_numpy(seen / 255) - torch.tensor(MEAN)) / torch.tensor(STD)
        patches = rearrange(
            levels,
            "(rows y p) (columns x q) c -> (rows columns y x) c p q",
            p=self.patch,
            q=self.patch,
            y=self.merged,
            x=self.merged,
        )
        return repeat(patches, "n c p q -> n (c t p q)", t=self.frames)

    def write(self, folder: Path) -> dict[str, str]:
        """Write `text_encoder/`, `tokenizer/` and the processor; return the class of each."""
        parts = {"text_encoder": self.model, "tokenizer": self.tokenizer}
        written = write_parts(folder, parts | {self.processor: self.tokenizer})
        numbers = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": self.patch,
            "temporal_patch_size": self.frames,
            "merge_size": self.merged,
            "image_mean": MEAN,
            "image_std": STD,
        }
        write_json(folder / self.processor / "preprocessor_config.json", numbers)
        return written | {self.processor: "Qwen2VLProcessor"}

    def _refuse_relatives(self) -> None:
        """Refuse models with the same text encoder that is told something else."""
        if pipeline_of(self.source) == FIRST:
            raise InputError(
                f"{self.source.root} is the first Qwen-Image-Edit, which shows its text encoder a "
                f"larger picture in other words; give {self.of}"
            )


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Return the sides of about `AREA` pixels in a picture's proportions, multiples of 32."""
    wide = math.sqrt(AREA * width / height)
    high, wide = (
        max(round(side / MULTIPLE), 1) * MULTIPLE for side in (wide * height / width, wide)
    )
    return high, wide


def places(start: int, rows: int, columns: int, length: int) -> Int64[Tensor, "3 l"]:
    """Return where tokens are along (time, row, column): words count on, cells lie in a plane.

    The picture is at token `start`; the words after it go on where its longer side ends.
    """
    row, column = torch.arange(rows), torch.arange(columns)
    plane = torch.stack(torch.meshgrid(torch.zeros(1, dtype=row.dtype), row, column, indexing="ij"))
    rest = torch.arange(length - start - rows * columns) + start + max(rows, columns)
    words = torch.arange(start).expand(3, -1), rest.expand(3, -1)
    return torch.cat([words[0], plane.flatten(1) + start, words[1]], dim=1)


def pipeline_of(source: PartSource) -> object:
    """Return the class of the pipeline a part belongs to; None where nothing tells."""
    index = Path(source.root, INDEX)
    return read_json(index).get("_class_name") if index.is_file() else None
