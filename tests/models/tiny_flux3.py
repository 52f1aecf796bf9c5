"""Tiny random models of the later FLUX families, in exactly the layout they are published in."""

import json
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux3 import Flux3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from emu_edit.models.sources import quiet_transformers
from tests.models.tiny_published import (
    EYES,
    HIDDEN,
    LAYERS,
    tiny_flux2,
    tiny_flux2_vae,
    write_qwen_tokenizer,
)

MISTRAL_MARKS = ("<s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG]")
# as Mistral's, for a system message and one of the user, of one text each
MISTRAL_TEMPLATE = (
    "<s>[SYSTEM_PROMPT]{{ messages[0].content[0].text }}[/SYSTEM_PROMPT]"
    "[INST]{{ messages[1].content[0].text }}[/INST]"
)


def tiny_mistral() -> Mistral3ForConditionalGeneration:
    config = Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": 263,
            "hidden_size": HIDDEN,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=262,
    )
    return Mistral3ForConditionalGeneration(config)


def write_dev(folder: Path) -> None:
    """Write a FLUX.2 dev of two layers and cells of 4 pixels."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.default_generator.manual_seed(0)
        tiny_flux2(guidance_embeds=True).save_pretrained(folder / "transformer")
        tiny_flux2_vae().save_pretrained(folder / "vae")
        tiny_mistral().save_pretrained(folder / "text_encoder")
    letters = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab={**letters, "<|endoftext|>": 256}, merges=[], padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*MISTRAL_MARKS]})
    tokenizer.chat_template = MISTRAL_TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(
        folder / "scheduler"
    )
    index = {
        "_class_name": "Flux2Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Mistral3ForConditionalGeneration"],
        "tokenizer": ["transformers", "PixtralProcessor"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def tiny_qwen3_vl() -> Qwen3VLForConditionalGeneration:
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 263,
            "hidden_size": HIDDEN,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [1, 1, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 4,
            "deepstack_visual_indexes": [0],
        },
        vision_start_token_id=259,
        vision_end_token_id=260,
        image_token_id=261,
        video_token_id=262,
    )
    return Qwen3VLForConditionalGeneration(config)


def tiny_flux3(flow_map: bool = False) -> Flux3Transformer2DModel:
    return Flux3Transformer2DModel(
        in_channels=8,
        cond_in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=len(LAYERS) * HIDDEN,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=flow_map,
    )


def write_flux3(folder: Path, *, flow_map: bool = False) -> None:
    """Write a FLUX.3 klein-base of two layers and cells of 4 pixels; it has no scheduler."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.default_generator.manual_seed(0)
        tiny_flux3(flow_map).save_pretrained(folder / "transformer")
        tiny_flux2_vae().save_pretrained(folder / "vae")
        tiny_qwen3_vl().save_pretrained(folder / "text_encoder")
    write_qwen_tokenizer(folder / "tokenizer", EYES)
    index = {
        "_class_name": "Flux3ModularPipeline",
        "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration", {}],
        "tokenizer": ["transformers", "AutoProcessor", {}],
        "transformer": ["diffusers", "Flux3Transformer2DModel", {}],
        "vae": ["diffusers", "AutoencoderKLFlux2", {}],
    }
    (folder / "modular_model_index.json").write_text(json.dumps(index))
