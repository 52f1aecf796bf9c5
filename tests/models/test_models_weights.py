"""Model directories: equal outputs after reload, parts load alone, broken ones are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from emu_edit.errors import ExitStatus, InputError, StorageError, status_of
from emu_edit.models.codec import KLCodec, PatchCodec
from emu_edit.models.interfaces import Conditioning, Denoiser, ImageCodec
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.sources import PROXIES, PartSource, load_diffusers, quiet_transformers
from emu_edit.models.text import TransformersText
from emu_edit.models.tiny import TinyText
from emu_edit.models.unet import PretrainedUNetDenoiser, UNetDenoiser
from emu_edit.models.weights import load_networks, save_networks
from emu_edit.tasks import SIXTEEN, TaskTable

SCHEDULER = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
SETTINGS = {"image_size": 8, "prediction": "change"}
TASKS = TaskTable(("local", "remove", "add"))


def tiny_networks() -> EditNetworks:
    denoiser = UNetDenoiser(
        12, [8], attention=[True], text_dim=16, task_dim=6, head_dim=4, norm_groups=4
    )
    return EditNetworks(
        denoiser,
        TinyText(dim=16, num_layers=1, num_heads=2),
        PatchCodec(patch=2),
        task_embedding=TaskEmbedding(3, 6),
        tasks=TASKS,
    )


def pretrained_networks(folder: Path) -> EditNetworks:
    return EditNetworks(
        PretrainedUNetDenoiser(str(folder), 6),
        TransformersText(str(folder)),
        KLCodec(str(folder), scale_condition=True),
        task_embedding=TaskEmbedding(3, 6),
        tasks=TASKS,
    )


def shake(networks: EditNetworks, generator: torch.Generator) -> EditNetworks:
    """Give the zero-initialised weights values, so that losing them would show."""
    for parameter in networks.denoiser.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return networks.eval()


@torch.no_grad()
def outputs(networks: EditNetworks) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    text, null = networks.encode_text(["make it red", "remove the cat"])
    z_source = networks.codec.encode_condition(torch.rand(2, 3, 8, 8, generator=generator))
    cond = Conditioning(text, z_source, networks.task_vectors(["add", "local"]))
    z_t = torch.randn(z_source.shape, generator=generator)
    return networks.denoiser(z_t, torch.tensor([3, 999]), cond), null.tokens


@pytest.fixture
def saved(tmp_path: Path, cpu_generator: torch.Generator) -> Path:
    networks = shake(tiny_networks(), cpu_generator)
    save_networks(networks, tmp_path / "model", scheduler_config=SCHEDULER, settings=SETTINGS)
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["tiny", "pretrained"])
def test_outputs_are_equal_after_saving_and_loading(
    tmp_path: Path, stable_diffusion: Path, cpu_generator: torch.Generator, kind: str
):
    make = {"tiny": tiny_networks, "pretrained": lambda: pretrained_networks(stable_diffusion)}
    networks = shake(make[kind](), cpu_generator)
    save_networks(networks, tmp_path / "model", scheduler_config=SCHEDULER, settings=SETTINGS)
    again, scheduler_config, settings = load_networks(tmp_path / "model", tasks=TASKS)
    assert all(map(torch.equal, outputs(again), outputs(networks)))
    assert again.tasks == TASKS
    assert settings == SETTINGS
    assert scheduler_config == {"_class_name": "DDIMScheduler", **SCHEDULER}
    assert again.text_encoder.max_tokens == networks.text_encoder.max_tokens
    assert not again.training
    trainable = {name for name, p in networks.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trainable
    images = torch.rand(1, 3, 8, 8, generator=cpu_generator)
    assert torch.equal(again.codec.encode(images), networks.codec.encode(images))
    # and once more: what was loaded can be saved
    save_networks(again, tmp_path / "second", scheduler_config=SCHEDULER, settings=SETTINGS)
    assert all(map(torch.equal, outputs(load_networks(tmp_path / "second")[0]), outputs(networks)))


def test_diffusers_and_transformers_load_the_parts_of_a_tiny_model(saved: Path):
    unet = UNet2DConditionModel.from_pretrained(saved, subfolder="unet")
    assert unet.config["in_channels"] == 24
    with quiet_transformers():
        assert T5EncoderModel.from_pretrained(saved, subfolder="text_encoder").config.d_model == 16
    assert AutoTokenizer.from_pretrained(saved, subfolder="tokenizer")("")["input_ids"] == [1]
    scheduler = DDIMScheduler.from_pretrained(saved, subfolder="scheduler")
    assert isinstance(scheduler, DDIMScheduler)
    assert scheduler.config["beta_schedule"] == "scaled_linear"
    index = json.loads((saved / "model_index.json").read_text())
    assert index["vae"] == ["emu_edit.models.codec", "PatchCodec"]
    assert json.loads((saved / "vae" / "config.json").read_text())["patch"] == 2


def test_diffusers_and_transformers_load_the_parts_of_a_pretrained_model(
    tmp_path: Path, stable_diffusion: Path
):
    networks = pretrained_networks(stable_diffusion)
    save_networks(networks, tmp_path / "model", scheduler_config=SCHEDULER, settings={})
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "model", subfolder="unet")
    assert unet.config["class_embed_type"] == "identity"
    assert AutoencoderKL.from_pretrained(tmp_path / "model", subfolder="vae").config["shift_factor"]
    with quiet_transformers():
        CLIPTextModel.from_pretrained(tmp_path / "model", subfolder="text_encoder")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]


def test_only_safetensors_and_text_are_written(saved: Path):
    kinds = {file.suffix for file in saved.rglob("*") if file.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt"}


def test_a_model_is_replaced_whole_and_leaves_nothing_behind(
    saved: Path, cpu_generator: torch.Generator
):
    (saved / "stale").write_text("from before")
    networks = shake(tiny_networks(), cpu_generator)
    save_networks(networks, saved, scheduler_config=SCHEDULER, settings=SETTINGS)
    assert not (saved / "stale").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model(saved: Path):
    before = outputs(load_networks(saved)[0])
    with pytest.raises(TypeError, match="JSON serializable"):
        save_networks(tiny_networks(), saved, scheduler_config={}, settings={"x": object()})
    assert all(map(torch.equal, outputs(load_networks(saved)[0]), before))
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_other_directories_are_never_overwritten(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(InputError, match="exists and is no model directory"):
            save_networks(tiny_networks(), path, scheduler_config={}, settings={})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_is_no_model_directory_is_refused(tmp_path: Path, stable_diffusion: Path):
    with pytest.raises(InputError, match="is no model directory"):
        load_networks(tmp_path)
    shutil.copytree(stable_diffusion, tmp_path / "sd")
    (tmp_path / "sd" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InputError, match="is a diffusers model, not one of this project"):
        load_networks(tmp_path / "sd")
    (tmp_path / "sd" / "model_index.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*model_index.json"):
        load_networks(tmp_path / "sd")
    (tmp_path / "sd" / "model_index.json").write_text("[]")
    with pytest.raises(InputError, match="holds list, needs a JSON object"):
        load_networks(tmp_path / "sd")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "tasks"])
def test_a_missing_part_is_named(saved: Path, part: str):
    shutil.rmtree(saved / part)
    with pytest.raises(InputError, match=part):
        load_networks(saved)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickled_parts_are_refused(saved: Path, part: str):
    weights = next((saved / part).glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="holds pickled weights"):
        load_networks(saved)


def test_another_task_table_is_refused(saved: Path):
    with pytest.raises(InputError, match="another task table: local, remove, add; needed: local"):
        load_networks(saved, tasks=SIXTEEN)
    file = saved / "tasks" / "tasks.json"
    file.write_text(json.dumps({"names": ["local", "remove"]}))
    with pytest.raises(InputError, match=r"shape \(3, 6\), tasks.json names 2 tasks"):
        load_networks(saved)
    file.write_text(json.dumps({"names": "local"}))
    with pytest.raises(InputError, match="no list of task names"):
        load_networks(saved)
    (saved / "tasks" / "tasks.safetensors").write_bytes(b"broken")
    file.write_text(json.dumps({"names": list(TASKS.names)}))
    with pytest.raises(InputError, match=r"tasks.safetensors, which is no safetensors file"):
        load_networks(saved)


def test_a_patch_codec_without_its_numbers_is_refused(saved: Path):
    (saved / "vae" / "config.json").write_text('{"_class_name": "PatchCodec", "patch": 2}')
    with pytest.raises(InputError, match="lacks a number of the PatchCodec"):
        load_networks(saved)


def test_networks_that_do_not_fit_are_refused():
    good = tiny_networks()

    def build(**other) -> EditNetworks:
        parts = {
            "denoiser": good.denoiser,
            "text_encoder": good.text_encoder,
            "codec": good.codec,
            "task_embedding": good.task_embedding,
            "tasks": TASKS,
        }
        return EditNetworks(**{**parts, **other})

    with pytest.raises(InputError, match="text_dim is 16, but the text encoder's width is 8"):
        build(text_encoder=TinyText(dim=8, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match="latent_channels is 12, but the codec's latent channels"):
        build(codec=PatchCodec(patch=4))
    with pytest.raises(InputError, match="task_dim is 6, but the task table's width is 5"):
        build(task_embedding=TaskEmbedding(3, 5))
    with pytest.raises(InputError, match="task names is 16, but the rows of the task table is 3"):
        build(tasks=SIXTEEN)


class IdentityDenoiser(Denoiser):
    latent_channels, text_dim, task_dim = 12, 16, 6

    def forward(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:  # noqa: ARG002
        return z_t


class PixelCodec(ImageCodec):
    latent_channels, factor = 12, 1

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images * 0

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        return images

    def encode_condition(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def test_networks_the_layout_does_not_know_are_refused(tmp_path: Path):
    networks = tiny_networks()
    networks.codec = PixelCodec()
    with pytest.raises(InputError, match="an autoencoder or patches, got a PixelCodec"):
        save_networks(networks, tmp_path / "model", scheduler_config={}, settings={})
    networks.denoiser = IdentityDenoiser()
    with pytest.raises(InputError, match="or an EditAdapterDenoiser, got a IdentityDenoiser"):
        save_networks(networks, tmp_path / "model", scheduler_config={}, settings={})
    assert not list(tmp_path.iterdir())


def test_text_and_null_text_come_from_one_call():
    networks = tiny_networks().eval()
    text, null = networks.encode_text(["make the circle red", "x"])
    assert text.tokens.shape[0] == 2
    assert null.tokens.shape == (1, *text.tokens.shape[1:])
    assert null.mask.sum() == 1


def test_task_vectors_are_rows_of_the_table_and_unknown_names_are_refused():
    networks = tiny_networks()
    table = networks.task_embedding.table
    assert torch.equal(networks.task_vectors(["add", "local"]), table[[2, 0]])
    assert torch.equal(networks.task_embedding(torch.tensor([1])), table[[1]])
    with pytest.raises(InputError, match="Did you mean 'remove'"):
        networks.task_vectors(["removed"])


def test_an_appended_task_leaves_the_others_as_they_were(cpu_generator: torch.Generator):
    embedding = TaskEmbedding(3, 6)
    before = embedding.table.detach().clone()
    vector = torch.randn(6, generator=cpu_generator)
    embedding.append(vector)
    assert len(embedding) == 4
    assert torch.equal(embedding.table[:3], before)
    assert torch.equal(embedding.table[3], vector)
    assert embedding.table.requires_grad


def test_a_hub_that_cannot_be_reached_is_told_at_once_and_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("emu_edit.models.sources.constants.HF_HUB_OFFLINE", False)
    asked = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        asked.append((address, timeout))
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("emu_edit.models.sources.socket.create_connection", refuse)
    words = r"cannot get none/such/unet: no network to \S+ \(Network is unreachable\), and .*cache"
    with pytest.raises(StorageError, match=words) as caught:
        load_diffusers(UNet2DConditionModel, PartSource("none/such", "unet"))
    assert status_of(caught.value, verb="fit") is ExitStatus.storage
    with pytest.raises(StorageError, match="cannot get none/such: no network"):
        TransformersText("none/such")
    assert [timeout for _, timeout in asked] == [5.0, 5.0]
