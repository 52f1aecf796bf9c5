"""Protocols of video benchmarks: what decides the numbers besides the videos, pinned by name."""

from dataclasses import dataclass, replace

from emu_edit.errors import InputError, closest
from emu_edit.metrics.preprocess import CLIP_PREPROCESS, Filter, Preprocess
from emu_edit.metrics.protocols import CLIP_L14
from emu_edit.metrics.viclip import VICLIP_INTERNVID, VICLIP_VBENCH, ViclipInput

CLIP, PICKSCORE, VICLIP = "clip", "pickscore", "viclip"
NETWORK_OF = {  # of each metric
    "pickscore": PICKSCORE,
    "clip_frame_all": CLIP,
    "clip_frame_next": CLIP,
    "clip_text": CLIP,
    "viclip_dir": VICLIP,
    "viclip_out": VICLIP,
}
TGVE_METRICS = tuple(NETWORK_OF)


@dataclass(frozen=True)
class Download:
    """What of a repository on the hub a network consists of.

    Attributes:
        name: `owner/name`; it is looked for in a folder `owner--name`.
        files: those that are needed.
    """

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class VideoProtocol:
    """What pins the numbers of a video benchmark.

    Attributes:
        name: as on the command line.
        metrics: which are computed, in the order of the table.
        clip: the CLIP; PickScore and ViCLIP read texts with its tokenizer, too.
        pickscore: the PickScore.
        viclip: the ViCLIP.
        frame_size: height and width every frame is resampled to before CLIP and PickScore.
        frame_filter: PIL's filter for it.
        clip_preprocess: how such a frame enters CLIP and PickScore.
        viclip_input: which frames enter ViCLIP, and how; of the video as it is.
        dtype: arithmetic of the networks; the metrics themselves are float64.
        source: who says so.
    """

    name: str
    metrics: tuple[str, ...]
    clip: Download
    pickscore: Download
    viclip: Download
    frame_size: tuple[int, int]
    frame_filter: Filter
    clip_preprocess: Preprocess
    viclip_input: ViclipInput
    dtype: str
    source: str

    def download(self, network: str) -> Download:
        """Say where a network is published; `network` is one of `NETWORK_OF`'s values."""
        return {CLIP: self.clip, PICKSCORE: self.pickscore, VICLIP: self.viclip}[network]


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
TGVE = VideoProtocol(
    name="tgve",
    metrics=TGVE_METRICS,
    clip=Download(CLIP_L14, ("config.json", "model.safetensors", *TOKENIZER)),
    pickscore=Download("yuvalkirstain/PickScore_v1", ("config.json", "model.safetensors")),
    viclip=Download("OpenGVLab/VBench_Used_Models", ("ViClip-InternVid-10M-FLT.pth",)),
    frame_size=(480, 480),
    frame_filter="bicubic",
    clip_preprocess=CLIP_PREPROCESS,
    viclip_input=VICLIP_VBENCH,
    dtype="float32",
    source=(
        "PickScore, CLIPFrame over all pairs, CLIPText: TGVE (arXiv:2310.16003), its evaluation "
        "script; ViCLIP: EVE (arXiv:2403.09334), which does not say how videos enter it: as "
        "VBench (arXiv:2311.17982) does; float32: ours"
    ),
)
TGVE_INTERNVID = replace(
    TGVE,
    name="tgve-internvid",
    viclip_input=VICLIP_INTERNVID,
    source=f"as tgve, but videos enter ViCLIP as in {VICLIP_INTERNVID.source}",
)
VIDEO_PROTOCOLS = {protocol.name: protocol for protocol in (TGVE, TGVE_INTERNVID)}


def video_protocol(name: str | None) -> VideoProtocol:
    """Find the protocol of that name; None is the default, tgve.

    Raises:
        InputError: if there is none.
    """
    protocol = TGVE if name is None else VIDEO_PROTOCOLS.get(name)
    if protocol is None:
        known, hint = ", ".join(VIDEO_PROTOCOLS), closest(str(name), list(VIDEO_PROTOCOLS))
        raise InputError(f"unknown protocol {name!r}; of videos there are: {known}.{hint}")
    return protocol
