"""Single files as the authors of Stable Diffusion and FLUX.2 publish them, of tiny models."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = (
    (r"time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"conv_in\.", lambda _: "input_blocks.0.0."),
    (r"conv_norm_out\.", lambda _: "out.0."),
    (r"conv_out\.", lambda _: "out.2."),
    (r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"mid_block\.attentions\.0", lambda _: "middle_block.1"),
)
VAE = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0\.conv", r"down.\1.downsample.conv"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)
FLUX2 = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
    **{
        f"transformer_blocks.0.{ours}": f"double_blocks.0.{theirs}"
        for ours, theirs in {
            "attn.norm_q": "img_attn.norm.query_norm",
            "attn.norm_k": "img_attn.norm.key_norm",
            "attn.to_out.0": "img_attn.proj",
            "ff.linear_in": "img_mlp.0",
            "ff.linear_out": "img_mlp.2",
            "attn.norm_added_q": "txt_attn.norm.query_norm",
            "attn.norm_added_k": "txt_attn.norm.key_norm",
            "attn.to_add_out": "txt_attn.proj",
            "ff_context.linear_in": "txt_mlp.0",
            "ff_context.linear_out": "txt_mlp.2",
        }.items()
    },
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": "single_blocks.0.linear1",
    "single_transformer_blocks.0.attn.to_out": "single_blocks.0.linear2",
    "single_transformer_blocks.0.attn.norm_q": "single_blocks.0.norm.query_norm",
    "single_transformer_blocks.0.attn.norm_k": "single_blocks.0.norm.key_norm",
}
STREAMS = {
    "img": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def unet_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """Return the original name of each weight of a U-Net."""
    layers = int(unet.config["layers_per_block"])
    attends = ["Attn" in kind for kind in unet.config["up_block_types"]]
    names = {}
    for name in unet.state_dict():
        new = name
        for pattern, put in UNET:
            new = re.sub(f"^{pattern}", put, new)
        if found := re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.", name):
            side, level, kind, number = found[1], int(found[2]), found[3], int(found[4])
            block = (layers + 1) * level + (number + 1 if side == "down" else number)
            place = {"resnets": "0", "attentions": "1"}.get(kind)
            if kind == "downsamplers":
                block, place = (layers + 1) * (level + 1), "0.op"
            elif kind == "upsamplers":
                block, place = (layers + 1) * level + layers, "2" if attends[level] else "1"
                place += ".conv"
            rest = name[found.end() :].removeprefix("conv." if "samplers" in kind else "")
            new = f"{'input' if side == 'down' else 'output'}_blocks.{block}.{place}.{rest}"
        if "resnets" in name:
            new = re.sub(r"\b(" + "|".join(RESNET) + r")\b", lambda m: RESNET[m[1]], new)
        names[name] = new
    return names


def write_stable_diffusion(file: Path, unet: UNet2DConditionModel, vae: AutoencoderKL) -> None:
    """Write U-Net and autoencoder as a checkpoint of Stable Diffusion 1 or 2, with its counter."""
    tensors = {"model_ema.num_updates": torch.tensor(7)}
    names, prefix = unet_names(unet), "model.diffusion_model."
    tensors |= {f"{prefix}{names[name]}": value for name, value in unet.state_dict().items()}
    levels = len(vae.config["block_out_channels"])
    for name, value in vae.state_dict().items():
        new = re.sub(
            r"up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0\.conv)",
            lambda m: (
                f"up.{levels - 1 - int(m[1])}." + (f"block.{m[3]}" if m[3] else "upsample.conv")
            ),
            name,
        )
        for pattern, put in VAE:
            new = re.sub(pattern, put, new)
        is_attention = "attn_1" in new and "norm" not in new and value.ndim == 2
        tensors[f"first_stage_model.{new}"] = value[..., None, None] if is_attention else value
    save_file(contiguous(tensors), file)


def write_flux2(file: Path, net: Flux2Transformer2DModel, without: Sequence[str] = ()) -> None:
    """Write a FLUX.2 of one block of each kind as its authors do, without some of its weights."""
    tensors: dict[str, Tensor] = {}
    state = net.state_dict()
    for stream, names in STREAMS.items():
        three = [state.pop(f"transformer_blocks.0.{name}.weight") for name in names]
        tensors[f"double_blocks.0.{stream}_attn.qkv.weight"] = torch.cat(three)
    scale, shift = state.pop("norm_out.linear.weight").chunk(2)
    tensors["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for name, value in state.items():
        layer, kind = name.rsplit(".", 1)
        kind = "scale" if "norm" in FLUX2[layer] else kind
        tensors[f"{FLUX2[layer]}.{kind}"] = value
    for name in without:
        del tensors[name]
    save_file(contiguous(tensors), file)


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that may be saved: none shares memory."""
    return {name: value.clone().contiguous() for name, value in tensors.items()}
