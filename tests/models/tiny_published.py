"""Tiny random models of today's families, in exactly the layout they are published in."""

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_longcat_image import LongCatImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from emu_edit.models.sources import quiet_transformers
from tests.models.conftest import (
    TEXT_DIM,
    clip_config,
    tiny_clip,
    write_clip_tokenizer,
    write_scheduler,
)
from tests.models.tiny_vae import tiny_vae

HIDDEN, LAYERS = 16, (1, 2, 3)
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EYES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")  # Qwen2.5-VL's
# as Qwen3's with thinking off, for one message
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def write_qwen_tokenizer(folder: Path, more: tuple[str, ...] = ()) -> None:
    """Write a tokenizer of bytes, with Qwen3's marks and chat template."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab={**vocabulary, MARKS[0]: 256}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS[1:], *more]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def tiny_qwen3() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=259,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
    )
    return Qwen3ForCausalLM(config)


def tiny_flux2_vae() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
    )
    norm = vae.bn
    norm.running_mean = torch.linspace(-0.3, 0.3, 8)
    norm.running_var = torch.linspace(0.5, 2.0, 8)
    return vae


def tiny_flux2(guidance_embeds: bool = False) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=len(LAYERS) * HIDDEN,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def write_klein(folder: Path, *, is_distilled: bool = False) -> None:
    """Write a FLUX.2 klein-base of four layers and cells of 4 pixels."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.default_generator.manual_seed(0)
        tiny_flux2().save_pretrained(folder / "transformer")
        tiny_flux2_vae().save_pretrained(folder / "vae")
        tiny_qwen3().save_pretrained(folder / "text_encoder")
    write_qwen_tokenizer(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "Flux2KleinPipeline",
        "is_distilled": is_distilled,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def tiny_flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        pooled_projection_dim=TEXT_DIM,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )


def tiny_t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=256 + 3, d_model=48, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    )
    return T5EncoderModel(config)


def write_t5_tokenizer(folder: Path) -> None:
    """Write a tokenizer of T5's class with the pieces of an alphabet."""
    letters = [f"{mark}{chr(c)}" for mark in ("", "▁") for c in range(33, 123)]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*marks, *((piece, -5.0) for piece in ["▁", *letters])]
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512).save_pretrained(folder)


def write_kontext(folder: Path) -> None:
    """Write a FLUX.1 Kontext of two layers and cells of 4 pixels."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.default_generator.manual_seed(0)
        tiny_flux().save_pretrained(folder / "transformer")
        tiny_vae(0.1159, channels=2, scale=0.3611).save_pretrained(folder / "vae")
        tiny_clip().save_pretrained(folder / "text_encoder")
        tiny_t5().save_pretrained(folder / "text_encoder_2")
    write_clip_tokenizer(folder / "tokenizer")
    short = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77)
    short.save_pretrained(folder / "tokenizer")
    write_t5_tokenizer(folder / "tokenizer_2")
    FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "FluxKontextPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def tiny_qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 263,
            "bos_token_id": 256,
            "eos_token_id": 258,
            "hidden_size": HIDDEN,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
        },
        vision_start_token_id=259,
        vision_end_token_id=260,
        image_token_id=261,
        video_token_id=262,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def tiny_qwen_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=2,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2],
        latents_std=[0.5, 2.0],
    )


def tiny_qwen(**options: bool) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        in_channels=8,
        out_channels=2,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        axes_dims_rope=(8, 4, 4),
        **{"zero_cond_t": True, **options},
    )


def write_qwen(folder: Path) -> None:
    """Write a Qwen-Image-Edit-2511 of two layers and cells of 4 pixels."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.default_generator.manual_seed(0)
        tiny_qwen().save_pretrained(folder / "transformer")
        tiny_qwen_vae().save_pretrained(folder / "vae")
        tiny_qwen_vl().save_pretrained(folder / "text_encoder")
    for name in ("tokenizer", "processor"):
        write_qwen_tokenizer(folder / name, EYES)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14}
    (folder / "processor" / "preprocessor_config.json").write_text(json.dumps(processor))
    FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "QwenImageEditPlusPipeline",
        "processor": ["transformers", "Qwen2VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def tiny_longcat() -> LongCatImageTransformer2DModel:
    return LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        pooled_projection_dim=HIDDEN,
        axes_dims_rope=[4, 4, 8],
    )


def write_longcat(folder: Path, *, is_turbo: bool = False) -> None:
    """Write a LongCat-Image-Edit of two layers, of 64 channels as its pipeline insists."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.default_generator.manual_seed(0)
        tiny_longcat().save_pretrained(folder / "transformer")
        tiny_vae(0.1159, channels=16, scale=0.3611).save_pretrained(folder / "vae")
        tiny_qwen_vl().save_pretrained(folder / "text_encoder")
    for name in ("tokenizer", "text_processor"):
        write_qwen_tokenizer(folder / name, EYES)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14}
    (folder / "text_processor" / "preprocessor_config.json").write_text(json.dumps(processor))
    FlowMatchEulerDiscreteScheduler(
        shift=1.0 if is_turbo else 3.0,
        use_dynamic_shifting=True,
        base_shift=1.15 if is_turbo else 0.5,
        max_shift=1.15,
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "LongCatImageEditPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "text_processor": ["transformers", "Qwen2_5_VLProcessor"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "LongCatImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def write_sdxl(folder: Path) -> None:
    """Write an SDXL that edits as InstructPix2Pix does: 8 input channels, cells of 8 pixels."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.default_generator.manual_seed(0)
        UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=2 * TEXT_DIM,
            attention_head_dim=2,
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=TEXT_DIM + 6 * 4,
        ).save_pretrained(folder / "unet")
        tiny_vae(None, levels=4, scale=0.13025).save_pretrained(folder / "vae")
        tiny_clip(layers=2).save_pretrained(folder / "text_encoder")
        CLIPTextModelWithProjection(
            clip_config(layers=2, projection_dim=TEXT_DIM, hidden_act="gelu")
        ).save_pretrained(folder / "text_encoder_2")
    for number in ("", "_2"):
        write_clip_tokenizer(folder / f"tokenizer{number}")
        short = CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}", model_max_length=77)
        short.save_pretrained(folder / f"tokenizer{number}")
    write_scheduler(folder)
    index = {
        "_class_name": "StableDiffusionXLInstructPix2PixPipeline",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
