"""The wirings of transformers of diffusers: what is particular about the networks of a class.

A wiring calls the network as its own pipeline does: where cells of z_t, cells of the source and
text tokens are put among its position ids, and what else it is told.
Source: the Flux2 Klein, Flux Kontext, Qwen-Image-Edit Plus and LongCat-Image-Edit pipelines and the
FLUX.3 modular one of diffusers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from emu_edit.diffusion.flow import CLASS, FLUX2, T
from emu_edit.errors import InputError
from emu_edit.models.directory import INDEX, read_json
from emu_edit.models.interfaces import TextFeatures
from emu_edit.models.sources import PartSource


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
        call: call the network; the output for the cells of z_t, others may follow.
        lora: the linear layers that LoRA adapts unless told otherwise, as peft names them.
        licence: what the licence of all published weights of it forbids.
        pooled: entry of its config for the width of the text's vector; None takes no vector.
        window: of text tokens, for networks that attend to all they are given, as many windows as
            a text takes; None for those whose texts are of one length, or have a mask.
        keeps_norm: how its pipeline guides, see `emu_edit.diffusion.guidance.guided`.
        scheduler: what its pipeline does where the scheduler's config does not say it.
    """

    name: str
    module: str
    time: str
    call: Callable[[Any, Told], Float[Tensor, "b m c"]]
    lora: tuple[str, ...]
    licence: str | None = None
    scheduler: Mapping[str, object] = field(default_factory=dict)
    pooled: str | None = None
    window: int | None = None
    keeps_norm: bool = False

    @property
    def network(self) -> type[ModelMixin]:
        """The class; diffusers has dozens of transformers, only this one is imported."""
        try:
            module = import_module(f"diffusers.models.transformers.{self.module}")
        except ModuleNotFoundError as error:
            raise InputError(
                f"the installed diffusers has no {self.name}; pip install -U diffusers"
            ) from error
        return getattr(module, self.name)


WINDOW = 80  # text tokens of FLUX.3: a text has the fewest windows that hold it


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


def call_longcat(net: nn.Module, told: Told) -> Float[Tensor, "b m c"]:
    """LongCat-Image-Edit: places 1 and 2, whose rows and columns count on from the text's end."""
    device, length = told.cells.device, told.text.tokens.shape[1]
    text_ids = torch.arange(length, device=device)[:, None].repeat(1, 3)
    text_ids[:, 0] = 0
    cells = torch.cat([cell_ids(told.grid, 3, place, device) for place in (1, 2)])
    cells[:, 1:] += length
    return net(
        hidden_states=told.cells,
        encoder_hidden_states=told.text.tokens,
        timestep=told.sigma,
        img_ids=cells,
        txt_ids=text_ids,
        return_dict=False,
    )[0]


def call_flux3(net: nn.Module, told: Told) -> Float[Tensor, "b m c"]:
    """FLUX.3: the source in a stream of its own, places are half cells; its output is z_t's."""
    device, half = told.cells.device, told.cells.shape[1] // 2
    cells = cell_ids(told.grid, 4, 0, device).float()
    cells[:, 1:3] /= 2
    source = cells.clone()
    source[:, 3] = -1
    text_ids = torch.zeros(told.text.tokens.shape[1], 4, device=device)
    text_ids[:, 3] = torch.arange(len(text_ids), device=device)
    return net(
        hidden_states=told.cells[:, :half],
        encoder_hidden_states=told.text.tokens,
        timestep=told.sigma,
        img_ids=cells,
        txt_ids=text_ids,
        image_cond_hidden_states=told.cells[:, half:],
        image_cond_ids=source,
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
    Family(
        "LongCatImageTransformer2DModel",
        "transformer_longcat_image",
        "time_embed",
        call_longcat,
        # as LongCat's own training of edits has them
        lora=(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
        ),
    ),
    Family(
        "Flux3Transformer2DModel",
        "transformer_flux3",
        "timestep_embedder",
        call_flux3,
        # of all streams and joint blocks; which: ours
        lora=("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        licence="the weights of FLUX.3 may not be used commercially, and what they draw only within"
        " limits (FLUX Kommunity License); see their model card",
        # its pipeline makes its scheduler itself, and the model has none
        scheduler={"_class_name": CLASS, "num_train_timesteps": T, "shift": 6.93},
        window=WINDOW,
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


def refuse_variants(
    config: Mapping[str, object], source: PartSource, scheduler: Mapping[str, object]
) -> None:
    """Refuse networks of a known class that were made for something else.

    Args:
        config: of the network.
        source: where it is.
        scheduler: config of its model's; empty where there is none.

    Raises:
        InputError: for step-distilled models, which stop learning, and inpainting models.
    """
    index = Path(source.root, INDEX)
    if index.is_file() and read_json(index).get("is_distilled"):
        raise InputError(
            f"{source.root} is distilled to few steps (is_distilled), which training breaks; give "
            "its base model"
        )
    has_one_shift = scheduler.get("use_dynamic_shifting") and (
        scheduler.get("base_shift") == scheduler.get("max_shift")
    )
    if has_one_shift and config.get("_class_name") == "LongCatImageTransformer2DModel":
        raise InputError(
            f"{source.root} has one shift for all sizes, as LongCat-Image-Edit-Turbo, which is "
            "distilled to few steps, which training breaks; give LongCat-Image-Edit"
        )
    if config.get("flow_map"):
        raise InputError(
            f"{source} is a flow map, distilled to few steps (flow_map), which training breaks; "
            "give its base model, FLUX.3-klein-base"
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
