"""An editor beside a picture model that stays what it is: a ControlNet that reads the source.

The picture model draws, told the caption of the result. A copy of its layers on the way down, and
of its middle, is told the source picture, the instruction and the task, and what it finds is added
to the picture model's features through convolutions that begin at zero: an untrained adapter
changes no bit. The copy is diffusers' own class in its own files; how it is told text and task is
as everywhere (`emu_edit.models.unet_inputs`).
Source: Emu Video Edit (EVE), Singer et al. 2024, arXiv:2403.09334, section 3.1; ControlNet, Zhang
et al. 2023, arXiv:2302.05543. The source enters as latents, not as pixels: ours.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from emu_edit.errors import InputError
from emu_edit.models.captioned_text import apart
from emu_edit.models.directory import copy_model
from emu_edit.models.interfaces import Conditioning, Denoiser
from emu_edit.models.networks import EditNetworks
from emu_edit.models.sources import find_part, load_diffusers, load_tensors
from emu_edit.models.surgery import freeze
from emu_edit.models.unet import TASK_FILE, UNetDenoiser
from emu_edit.models.unet_inputs import Control, TaskMaps
from emu_edit.tasks import CAPTION

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel

BASE = "base"  # the picture model's folder in a model directory
PART = "controlnet"  # and the ControlNet's

# which tokens the call now running may attend to; diffusers' ControlNet takes no such mask
_MASK: ContextVar[Tensor | None] = ContextVar("mask", default=None)


class EditControl(TaskMaps):
    """The copy of a picture model's first half that is told source, instruction and task.

    Attributes:
        net: diffusers' ControlNet; its condition are latents of the source.

    Args:
        net: of as many levels and widths as the base.
        base: the picture model; its maps of pooled text and of places are copied.
        task_dim: width of the task vector.
    """

    def __init__(self, net: "ControlNetModel", base: UNetDenoiser, task_dim: int) -> None:
        super().__init__()
        self.net = net
        octaves = 0 if base.positions is None else base.positions.octaves
        self.add_maps(net, task_dim, base.text_to_time is not None, octaves)
        if base.text_to_time is not None and self.text_to_time is not None:
            self.text_to_time.load_state_dict(base.text_to_time.state_dict())
        if base.positions is not None and self.positions is not None:
            for mine, its in zip(self.positions.maps, base.positions.maps, strict=False):
                mine.load_state_dict(its.state_dict())
        for layer in net.modules():
            if isinstance(layer, Transformer2DModel):
                layer.register_forward_pre_hook(_masked, with_kwargs=True)

    @staticmethod
    def beside(base: UNetDenoiser, task_dim: int) -> "EditControl":
        """Return an untrained adapter of a picture model.

        Raises:
            InputError: if the picture model is told a vector of the whole text (SDXL).
        """
        from diffusers.models.controlnets.controlnet import ControlNetModel  # slow to import

        if base.pooled_dim:
            raise InputError(
                "edit adapters are for picture models told tokens alone, and this is a Stable "
                "Diffusion XL; give a Stable Diffusion 1.x or 2.x, or a model of text_to_image"
            )
        widths = base.unet.config["block_out_channels"]
        net = ControlNetModel.from_unet(
            base.unet,
            conditioning_channels=base.latent_channels,
            # one width: the condition keeps the latents' size
            conditioning_embedding_out_channels=(widths[0],),
        )
        with torch.no_grad():  # the picture model's own place for a source, which it never saw
            net.conv_in.weight[:, base.latent_channels :] = 0
        return EditControl(net, base, task_dim)

    @staticmethod
    def load(folder: Path, base: UNetDenoiser, task_dim: int) -> "EditControl":
        """Read an adapter from the model directory it was written to.

        Raises:
            InputError: if a file is missing or damaged, or does not fit the picture model.
        """
        from diffusers.models.controlnets.controlnet import ControlNetModel

        net = load_diffusers(ControlNetModel, find_part(folder / PART, PART))
        found, needed = (each.config["block_out_channels"] for each in (net, base.unet))
        if tuple(found) != tuple(needed):
            raise InputError(
                f"{folder / PART} has levels of {tuple(found)} channels, its {BASE}/ has "
                f"{tuple(needed)}; they belong to different models"
            )
        return EditControl(net, base, task_dim)

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning
    ) -> Control:
        """Return what is added to the picture model's features."""
        weights = self.task_to_time.weight.dtype
        if z_t.dtype != weights:
            return self(z_t.to(weights), t, cond.to(weights)).to(z_t.dtype)
        told = self.unet_told(z_t, cond)
        token = _MASK.set(told.mask)
        try:
            down, middle = self.net(
                torch.cat([z_t, torch.zeros_like(z_t)], dim=1),
                t,
                told.tokens,
                controlnet_cond=cond.z_source,
                class_labels=told.shift,
                return_dict=False,
            )
        finally:
            _MASK.reset(token)
        return Control(tuple(down), middle)


class EditAdapterDenoiser(Denoiser):
    """A frozen picture model and the adapter that makes it edit.

    Text features are those of `CaptionedText`.

    Args:
        networks: the picture model's, which draws from captions.
        control: beside its denoiser.
        folder: its model directory, which is copied where this is written.
    """

    part = PART

    def __init__(self, networks: EditNetworks, control: EditControl, folder: Path) -> None:
        super().__init__()
        base = networks.denoiser
        assert isinstance(base, UNetDenoiser)
        self.base, self.control, self.folder = freeze(base), control, folder
        self.latent_channels, self.text_dim = base.latent_channels, base.text_dim
        self.task_dim, self.trained_as = control.task_dim, base.trained_as
        draws = networks.task_vectors([CAPTION])[0].detach()
        # a part of the picture model, and no weight of the adapter
        self.register_buffer("drawing", draws.clone(), persistent=False)
        self.drawing: Float[Tensor, " k"]

    @property
    def controlnet(self) -> "ControlNetModel":
        """The network of diffusers."""
        return self.control.net

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Return the picture model's output, led by the adapter."""
        return self.base(z_t, t, self.drawn(cond), self.control(z_t, t, self.asked(cond)))

    def asked(self, cond: Conditioning) -> Conditioning:
        """Return what the adapter is told: source, instruction and task."""
        return Conditioning(apart(cond.text)[0], cond.z_source, cond.v_task)

    def drawn(self, cond: Conditioning) -> Conditioning:
        """Return what the picture model is told: the caption, no source, and to draw."""
        nothing = torch.zeros_like(cond.z_source)
        v_task = self.drawing.to(cond.v_task).expand(len(nothing), -1)
        return Conditioning(apart(cond.text)[1], nothing, v_task)

    def maps(self) -> dict[str, Tensor]:
        """Return the adapter's weights that are not its ControlNet's."""
        own = self.control.state_dict()
        return {name: value for name, value in own.items() if not name.startswith("net.")}

    def write(self, folder: Path) -> None:
        """Write the ControlNet, and a copy of the picture model's files."""
        self.controlnet.save_pretrained(folder / PART, safe_serialization=True)
        copy_model(self.folder, folder / BASE)

    @staticmethod
    def load(folder: Path, networks: EditNetworks, task_dim: int) -> "EditAdapterDenoiser":
        """Read what was written into a model directory onto the networks of its picture model.

        Raises:
            InputError: if a part is missing or damaged, or does not fit.
        """
        base = networks.denoiser
        assert isinstance(base, UNetDenoiser)
        control = EditControl.load(folder, base, task_dim)
        denoiser = EditAdapterDenoiser(networks, control, folder / BASE)
        maps: Mapping[str, Tensor] = load_tensors(folder / TASK_FILE)
        denoiser.load_maps(maps, folder / TASK_FILE)
        return denoiser


def _masked(
    _layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask: Bool[Tensor, "b l"] | None = _MASK.get()
    return inputs, named if mask is None else {**named, "encoder_attention_mask": mask}
