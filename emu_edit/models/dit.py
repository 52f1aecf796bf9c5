"""Denoisers that are diffusion transformers of diffusers, told source and task.

The source enters as the family's own pipeline brings it: its cells follow those of z_t in the
sequence, at another place of the position ids. The task vector enters twice: a linear map is added
to the last 4 text tokens that are attended to (padding, or the constant end of a chat template),
another one to the timestep embedding. Both maps start at zero, so that step 0 equals the base bit
for bit; tokens that are appended, as a U-Net has them, never would: a zero token goes through
biases and norms, and takes attention from the text.
Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.2, with the four tokens and the timestep of
Movie Gen, arXiv:2410.13720; adding instead of appending: ours.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from emu_edit.diffusion.flow import T
from emu_edit.errors import InputError
from emu_edit.models.families import Told, family_of, refuse_variants
from emu_edit.models.interfaces import NUM_TASK_TOKENS, Conditioning, Denoiser, TextFeatures
from emu_edit.models.lora import QUANTISED, add_lora, quantise, read_lora, spared_bytes, write_lora
from emu_edit.models.sources import (
    config_of,
    find_part,
    find_training,
    has_shapes_only,
    load_diffusers,
    load_tensors,
    refuse_unrunnable,
)
from emu_edit.models.surgery import freeze
from emu_edit.models.unet import TASK_FILE
from emu_edit.models.unet_inputs import zero_linear


class DiTDenoiser(Denoiser):
    """A pretrained transformer of one of the `FAMILIES`, trained whole or by LoRA.

    Args:
        path: model directory (or its `transformer/`), a hub name `owner/name/transformer`, or a
            single file; safetensors only. A model directory of this project brings its own maps.
        task_dim: width of the task vector.
        lora_rank: train low-rank adapters of this rank and freeze the network; 0 trains all of it.
        lora_alpha: adapters count alpha / rank times; none means `lora_rank`, a factor of 1.
        lora_targets: names (or ends of names) of the linear layers to adapt; none means the
            family's.
        guidance: the scale a guidance-distilled network (FLUX.1 Kontext, FLUX.2 dev) is told.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a
            third more time.
        weights: precision of the network's weights; adapters and maps are float32. int8, float8 and
            nf4 hold those of a frozen network in 8 or 4 bits, and compute in bfloat16.
        config: for a single file, a local model directory of the same base.

    Raises:
        InputError: if it cannot be found or loaded, is of another class, or is a variant for
            something else.
    """

    part = "transformer"

    def __init__(
        self,
        path: str,
        task_dim: int = 64,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        lora_targets: list[str] | None = None,
        guidance: float = 1.0,
        gradient_checkpointing: bool = False,
        weights: Literal["float32", "bfloat16", "int8", "float8", "nf4"] = "float32",
        config: str | None = None,
    ) -> None:
        super().__init__()
        self.source = find_part(path, self.part, config)
        numbers = config_of(self.source)
        self.family = family_of(numbers, str(self.source))
        self.licence, self.keeps_norm = self.family.licence, self.family.keeps_norm
        told = find_training(self.source)
        refuse_variants(numbers, self.source, told.config)
        if weights in QUANTISED and not lora_rank:
            raise InputError(
                f"denoiser.weights: {weights} is for a frozen network; give denoiser.lora_rank"
            )
        precision = torch.float32 if weights == "float32" else torch.bfloat16
        self.transformer: Any = load_diffusers(self.family.network, self.source, precision)
        if gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.weights, self.has_adapters = weights, lora_rank != 0
        if weights in QUANTISED and has_shapes_only():
            self.spared = spared_bytes(self.transformer, weights)
        elif weights in QUANTISED:
            quantise(freeze(self.transformer), weights)
        if self.has_adapters:
            targets = self.family.lora if lora_targets is None else lora_targets
            add_lora(self.transformer, targets, lora_rank, lora_alpha)
        self.latent_channels = int(self.transformer.config["in_channels"])
        self.text_dim = int(self.transformer.config["joint_attention_dim"])
        if self.family.pooled is not None:
            self.pooled_dim = int(self.transformer.config[self.family.pooled])
        self.task_dim = task_dim
        self.guidance = guidance if self.transformer.config.get("guidance_embeds") else None
        self.task_to_tokens = zero_linear(task_dim, NUM_TASK_TOKENS * self.text_dim)
        self.task_to_time = zero_linear(task_dim, self.transformer.inner_dim)
        self._shift: Tensor | None = None
        self.transformer.get_submodule(self.family.time).register_forward_hook(self._shifted)
        scheduler = {**self.family.scheduler, **told.config}
        self.trained_as = replace(told, config=scheduler if "_class_name" in scheduler else {})
        task_file = Path(self.source.root, TASK_FILE)
        if task_file.is_file():
            self.load_maps(load_tensors(task_file), task_file)
        refuse_unrunnable(self._smallest, str(self.source))

    def take_adapters(self, folder: Path, weights: str) -> None:
        """Take over the LoRA and the maps of a model directory that has no network of its own.

        Args:
            folder: that directory.
            weights: the precision the adapters were trained with.

        Raises:
            InputError: if they do not fit.
        """
        self.weights = weights
        if weights in QUANTISED:
            quantise(freeze(self.transformer), weights)
        read_lora(self.transformer, folder)
        self.has_adapters = True
        self.load_maps(load_tensors(folder / TASK_FILE), folder / TASK_FILE)

    def write(self, folder: Path) -> None:
        """Write what is learnt of the network: `transformer/`, or the file of its adapters."""
        if self.has_adapters:
            write_lora(self.transformer, folder)
        else:
            self.transformer.save_pretrained(folder / self.part, safe_serialization=True)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile, in place of the whole network, the blocks that it repeats: each kind once.

        The compiler sees neither the task's hook nor pictures and texts being put together.
        """
        self.transformer.compile_repeated_blocks(*args, **kwargs)

    def _smallest(self) -> Tensor:
        z = torch.zeros(1, self.latent_channels, 1, 1)
        tokens = torch.zeros(1, NUM_TASK_TOKENS + 1, self.text_dim)
        text = TextFeatures(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
        cond = Conditioning(text=text, z_source=z, v_task=torch.zeros(1, self.task_dim))
        return self(z, torch.full((1,), T), cond)

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Return the raw output, v = eps - z_0 as all these families were trained.

        Every text has at least 4 tokens that are attended to: padding or a template sees to it.
        """
        # of packed weights the transformer would say the precision of its adapters
        precision = torch.bfloat16 if self.weights == "nf4" else self.transformer.dtype
        height, width = z_t.shape[-2:]
        if z_t.dtype != precision:
            return self(z_t.to(precision), t, cond.to(precision)).to(z_t.dtype)
        lengths = self._lengths(cond.text)
        if {*lengths} != {cond.text.mask.shape[1]}:
            return self._apart(z_t, t, cond, lengths)
        cells = torch.cat([z_t.flatten(2), cond.z_source.flatten(2)], dim=2).transpose(1, 2)
        tokens = self.task_to_tokens(cond.v_task.to(self.task_to_tokens.weight.dtype))
        told = Told(
            cells,
            with_task(cond.text, rearrange(tokens, "b (n d) -> b n d", n=NUM_TASK_TOKENS)),
            sigma=(sigma := (t / T).float()),
            grid=(height, width),
            guidance=None if self.guidance is None else torch.full_like(sigma, self.guidance),
        )
        self._shift = self.task_to_time(cond.v_task.to(self.task_to_time.weight.dtype))
        try:
            output = self.family.call(self.transformer, told)
        finally:
            self._shift = None
        return output[:, : height * width].transpose(1, 2).unflatten(2, (height, width))

    def _lengths(self, text: TextFeatures) -> list[int]:
        """Return how many tokens of each text the network is to be given.

        Where a text may have more windows than one, a GPU is waited for to know how many.
        """
        longest, window = text.mask.shape[1], self.family.window
        if window is None or longest <= window or isinstance(text.mask, FakeTensor):
            return [longest]
        return text.mask.sum(dim=1).tolist()

    def _apart(
        self,
        z_t: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        cond: Conditioning,
        lengths: list[int],
    ) -> Float[Tensor, "b c h w"]:
        """Return the raw output, texts of different lengths in batches of their own."""
        rows_of: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            rows_of.setdefault(length, []).append(row)
        outputs = []
        for length, rows in rows_of.items():
            text = TextFeatures(cond.text.tokens[rows, :length], cond.text.mask[rows, :length])
            some = Conditioning(text, cond.z_source[rows], cond.v_task[rows])
            outputs.append(self(z_t[rows], t[rows], some))
        order = torch.tensor([row for rows in rows_of.values() for row in rows], device=z_t.device)
        return torch.cat(outputs)[order.argsort()]

    def _shifted(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """Add the task to the timestep embedding, in every row of a sample."""
        if self._shift is None:
            return output
        rows = len(output) // len(self._shift)
        return output + self._shift.repeat(rows, 1).to(output.dtype)


def with_task(text: TextFeatures, delta: Float[Tensor, "b 4 d"]) -> TextFeatures:
    """Add `delta` to the last 4 tokens of each text that are attended to."""
    places = (
        text.mask.sum(dim=1)[:, None]
        - NUM_TASK_TOKENS
        + torch.arange(NUM_TASK_TOKENS, device=text.mask.device)
    )
    places = places[..., None].expand(-1, -1, text.tokens.shape[-1])
    tokens = text.tokens.scatter_add(1, places, delta.to(text.tokens.dtype))
    return replace(text, tokens=tokens)
