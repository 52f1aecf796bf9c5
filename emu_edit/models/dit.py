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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Float, Int64, Real
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from emu_edit.diffusion.flow import FLUX2, T
from emu_edit.diffusion.prediction import TrainedAs
from emu_edit.errors import InputError
from emu_edit.models.directory import INDEX, read_json
from emu_edit.models.interfaces import NUM_TASK_TOKENS, Conditioning, Denoiser, TextFeatures
from emu_edit.models.lora import QUANTISED, add_lora, quantise, read_lora, write_lora
from emu_edit.models.sources import (
    PartSource,
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


@dataclass(frozen=True)
class Told:
    """What a family's network is called with.

    Attributes:
        cells: those of z_t, row by row, then those of the source: m = 2 h w.
        sigma: the noise level, 0 to 1.
        grid: (h, w).
        guidance: the scale a guidance-distilled network is told; None for others.
    """

    cells: Float[Tensor, "b m c"]
    text: TextFeatures
    sigma: Float[Tensor, " b"]
    grid: tuple[int, int]
    guidance: Float[Tensor, " b"] | None


@dataclass(frozen=True)
class Family:
    """What is particular about the networks of one class of diffusers.

    Attributes:
        name: of the class.
        module: where it is, below `diffusers.models.transformers`.
        time: the submodule whose output is the timestep embedding.
        call: call the network; the output for all cells.
        lora: the linear layers that LoRA adapts unless told otherwise, as peft names them.
        licence: what the licence of all published weights of it forbids.
        pooled: entry of its config for the width of the text's vector; None takes no vector.
        keeps_norm: how its pipeline guides, see `emu_edit.diffusion.guidance.guided`.
        scheduler: what its pipeline does and the scheduler's config does not say.
    """

    name: str
    module: str
    time: str
    call: Callable[[Any, Told], Float[Tensor, "b m c"]]
    lora: tuple[str, ...]
    licence: str | None = None
    scheduler: Mapping[str, object] = field(default_factory=dict)
    pooled: str | None = None
    keeps_norm: bool = False

    @property
    def network(self) -> type[ModelMixin]:
        """The class; diffusers has dozens of transformers, only this one is imported."""
        return getattr(import_module(f"diffusers.models.transformers.{self.module}"), self.name)


def cell_ids(
    grid: tuple[int, int], axes: int, place: int, device: torch.device
) -> Int64[Tensor, "n a"]:
    """Return the position ids of the cells of a picture: (place, row, column, 0, ...)."""
    height, width = grid
    ids = torch.zeros(height, width, axes, dtype=torch.int64, device=device)
    ids[..., 0] = place
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)
    return ids.flatten(0, 1)


def call_flux2(net: nn.Module, told: Told) -> Float[Tensor, "b m c"]:
    """FLUX.2 (klein, dev): the source at place 10, text tokens count along the fourth axis."""
    device, tokens = told.cells.device, told.text.tokens
    places = [cell_ids(told.grid, 4, place, device) for place in (0, 10)]
    text_ids = torch.zeros(tokens.shape[1], 4, dtype=torch.int64, device=device)
    text_ids[:, 3] = torch.arange(tokens.shape[1], device=device)
    return net(
        hidden_states=told.cells,
        encoder_hidden_states=tokens,
        timestep=told.sigma,
        img_ids=torch.cat(places),
        txt_ids=text_ids,
        guidance=told.guidance,
        return_dict=False,
    )[0]


def call_flux(net: Any, told: Told) -> Float[Tensor, "b m c"]:
    """FLUX.1 Kontext: the source at place 1, text tokens at the origin, CLIP's vector beside."""
    device, tokens = told.cells.device, told.text.tokens
    return net(
        hidden_states=told.cells,
        encoder_hidden_states=tokens[:, 1:],
        pooled_projections=tokens[:, 0, : net.config["pooled_projection_dim"]],
        timestep=told.sigma,
        img_ids=torch.cat([cell_ids(told.grid, 3, place, device) for place in (0, 1)]),
        txt_ids=torch.zeros(tokens.shape[1] - 1, 3, device=device),
        guidance=told.guidance,
        return_dict=False,
    )[0]


def call_qwen(net: nn.Module, told: Told) -> Float[Tensor, "b m c"]:
    """Qwen-Image-Edit: the source is the second picture of the sequence, padding is not seen."""
    tokens, mask = told.text.tokens, told.text.mask
    # without a mask attention has faster kernels; only on the CPU a look at it waits for nothing
    can_look = mask.device.type == "cpu" and not isinstance(mask, FakeTensor)
    is_whole = can_look and bool(mask.all())
    return net(
        hidden_states=told.cells,
        encoder_hidden_states=tokens,
        encoder_hidden_states_mask=None if is_whole else mask,
        timestep=told.sigma,
        img_shapes=[[(1, *told.grid)] * 2] * len(tokens),
        return_dict=False,
    )[0]


FAMILIES = (
    Family(
        "Flux2Transformer2DModel",
        "transformer_flux2",
        "time_guidance_embed",
        call_flux2,
        # of both kinds of blocks, as diffusers' own training of FLUX.2 has them
        lora=("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "attn.to_out"),
        licence="of FLUX.2's weights klein 4B may be used commercially (Apache-2.0), klein 9B and "
        "dev may not (FLUX Non-Commercial License); see their model cards",
        scheduler={FLUX2: True},
    ),
    Family(
        "FluxTransformer2DModel",
        "transformer_flux",
        "time_text_embed",
        call_flux,
        # as diffusers' own training of Kontext has them
        lora=("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_mlp"),
        licence="the weights of FLUX.1 Kontext dev may not be used commercially, nor what is made "
        "of them (FLUX.1 [dev] Non-Commercial License); see their model card",
        pooled="pooled_projection_dim",
    ),
    Family(
        "QwenImageTransformer2DModel",
        "transformer_qwenimage",
        "time_text_embed",
        call_qwen,
        # of the picture's stream, as diffusers' own training of Qwen-Image has them
        lora=("to_q", "to_k", "to_v", "to_out.0"),
        keeps_norm=True,
    ),
)


def family_of(config: Mapping[str, object], where: str) -> Family:
    """Return the family of a network by its config.

    Raises:
        InputError: if it is of none.
    """
    name = config.get("_class_name")
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise InputError(
        f"{where} is a {name}, needs one of {known}; a U-Net goes with PretrainedUNetDenoiser"
    )


def refuse_variants(config: Mapping[str, object], source: PartSource) -> None:
    """Refuse networks of a known class that were made for something else.

    Raises:
        InputError: for step-distilled models, which stop learning, and inpainting models.
    """
    index = Path(source.root, INDEX)
    if index.is_file() and read_json(index).get("is_distilled"):
        raise InputError(
            f"{source.root} is distilled to few steps (is_distilled), which training breaks; give "
            "its base model"
        )
    for name in ("use_additional_t_cond", "use_layer3d_rope"):
        if config.get(name):
            raise InputError(
                f"{source} has {name}, as Qwen-Image-Layered, which draws layers and does not "
                "edit; give Qwen-Image-Edit-2509 or 2511"
            )
    channels, out = config.get("in_channels"), config.get("out_channels")
    if out is not None and channels not in {out, 4 * cast("int", out)}:
        raise InputError(
            f"{source} takes {channels} channels and gives {out}, as an inpainting or control "
            "model does; give the model that edits, or draws from text"
        )


class DiTDenoiser(Denoiser):
    """A pretrained transformer of one of the FAMILIES, trained whole or by LoRA.

    Args:
        path: model directory (or its `transformer/`), or a hub name `owner/name/transformer`;
            safetensors only. A model directory of this project brings its own maps.
        task_dim: width of the task vector.
        lora_rank: train low-rank adapters of this rank and freeze the network; 0 trains all of it.
        lora_alpha: adapters count alpha / rank times; none means `lora_rank`, a factor of 1.
        lora_targets: names (or ends of names) of the linear layers to adapt; none means the
            family's.
        guidance: the scale a guidance-distilled network (FLUX.1 Kontext, FLUX.2 dev) is told.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a
            third more time.
        weights: precision of the network's weights; adapters and maps are float32. int8 and float8
            hold those of a frozen network in 8 bits (torchao), and compute in bfloat16.

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
        weights: Literal["float32", "bfloat16", "int8", "float8"] = "float32",
    ) -> None:
        super().__init__()
        self.source = find_part(path, self.part)
        config = config_of(self.source)
        self.family = family_of(config, str(self.source))
        self.licence, self.keeps_norm = self.family.licence, self.family.keeps_norm
        refuse_variants(config, self.source)
        if weights in QUANTISED and not lora_rank:
            raise InputError(
                f"denoiser.weights: {weights} is for a frozen network; give denoiser.lora_rank"
            )
        precision = torch.float32 if weights == "float32" else torch.bfloat16
        self.transformer: Any = load_diffusers(self.family.network, self.source, precision)
        if gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.weights, self.has_adapters = weights, lora_rank != 0
        if weights in QUANTISED and not has_shapes_only():
            quantise(freeze(self.transformer), weights)
        if self.has_adapters:
            targets = self.family.lora if lora_targets is None else lora_targets
            add_lora(self.transformer, targets, lora_rank, lora_alpha)
        self.latent_channels = int(self.transformer.config["in_channels"])
        self.text_dim = int(self.transformer.config["joint_attention_dim"])
        if self.family.pooled is not None:
            self.pooled_dim = int(self.transformer.config[self.family.pooled])
        self.task_dim = task_dim
        self.guidance = guidance if self.transformer.config["guidance_embeds"] else None
        self.task_to_tokens = zero_linear(task_dim, NUM_TASK_TOKENS * self.text_dim)
        self.task_to_time = zero_linear(task_dim, self.transformer.inner_dim)
        self._shift: Tensor | None = None
        self.transformer.get_submodule(self.family.time).register_forward_hook(self._shifted)
        self.trained_as = self._training()
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

    def _training(self) -> TrainedAs:
        told = find_training(self.source)
        return (
            replace(told, config={**told.config, **self.family.scheduler}) if told.config else told
        )

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
        precision, (height, width) = self.transformer.dtype, z_t.shape[-2:]
        if z_t.dtype != precision:
            return self(z_t.to(precision), t, cond.to(precision)).to(z_t.dtype)
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
