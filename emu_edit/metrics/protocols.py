"""Protocols: everything that decides a benchmark's numbers besides the pictures, pinned by name.

The same pictures score 0.22 or 0.28 in CLIPout with another CLIP, 0.30 when wrong captions are left
out (ICEdit issue 69), so two numbers are comparable only under one protocol. A protocol names the
metrics, the networks and how pictures enter them, the filter an edited picture of another size is
resampled with, the arithmetic, which items are left out, and what a picture is compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from emu_edit.errors import InputError, closest
from emu_edit.metrics.preprocess import CLIP_PREPROCESS, DINO_PREPROCESS, Filter, Preprocess

EMU_METRICS = ("clip_dir", "clip_im", "clip_out", "l1", "dino")
MAGICBRUSH_METRICS = ("l1", "l2", "clip_i", "dino", "clip_t")


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        label: its name for people.
        is_up: whether more of it is better; None where that is not known.
        meaning: in one line.
    """

    label: str
    is_up: bool | None
    meaning: str = ""

    def __str__(self) -> str:
        return self.label + {True: " ↑", False: " ↓", None: ""}[self.is_up]


METRICS = {
    "clip_dir": Metric(
        "CLIPdir",
        True,
        "cosine between the change of the picture and the change of the caption, in CLIP",
    ),
    "clip_im": Metric("CLIPim", True, "cosine of edited picture and input, in CLIP"),
    "clip_out": Metric("CLIPout", True, "cosine of edited picture and target caption, in CLIP"),
    "clip_i": Metric("CLIP-I", True, "cosine of edited picture and ground truth, in CLIP"),
    "clip_t": Metric("CLIP-T", True, "cosine of edited picture and its description, in CLIP"),
    "dino": Metric("DINO", True, "cosine of edited and reference picture, in DINO"),
    "l1": Metric("L1", False, "mean absolute difference to the reference picture, in [0, 1]"),
    "l2": Metric("L2", False, "mean squared difference to the reference picture, in [0, 1]"),
    "pickscore": Metric("PickScore", True, "frames and target caption in PickScore, averaged"),
    "clip_frame_all": Metric(
        "CLIPFrame (all pairs)",
        True,
        "cosine over all pairs of frames, in CLIP: TGVE's; a still has 1",
    ),
    "clip_frame_next": Metric(
        "CLIPFrame (neighbours)",
        True,
        "cosine of each frame with the next one, in CLIP: what many papers call CLIPFrame",
    ),
    "clip_text": Metric(
        "CLIPText", True, "100 times the cosine of frames and target caption, in CLIP, averaged"
    ),
    "viclip_dir": Metric(
        "ViCLIPdir",
        True,
        "cosine between the change of the video and the change of the caption, in ViCLIP",
    ),
    "flicker": Metric(
        "change",
        None,
        "mean change from frame to frame, in levels; of a still shot, flicker",
    ),
    "warp_error": Metric(
        "warp error",
        False,
        "how a surface changes from frame to frame, in levels; flow exact where it is known, else "
        "RAFT's of the source",
    ),
    "viclip_out": Metric("ViCLIPout", True, "cosine of edited video and target caption, in ViCLIP"),
    "fvd": Metric("FVD", False, "Fréchet distance of drawn and real videos, in I3D"),
    "is": Metric("IS", True, "Inception score of drawn videos, in C3D"),
    "clip_fc": Metric("FC", True, "100 times the cosine of neighbouring frames, in CLIP"),
    "clip_ic": Metric("IC", True, "100 times the cosine of frames and the given picture, in CLIP"),
    "clip_tc": Metric("TC", True, "100 times the cosine of frames and caption, in CLIP"),
}

CLIP_B32 = "openai/clip-vit-base-patch32"
CLIP_L14 = "openai/clip-vit-large-patch14"
DINO_S16 = "facebook/dino-vits16"

INPUT, GROUND_TRUTH = "input", "ground truth"
NO_FILTER, KNOWN_BAD = "none", "emu-known-bad"
AS_WRITTEN, MENDED = "as written", "mended"
# a caption that stands in the Emu Edit test set beside pictures of other things (OmniGen issue 164)
KNOWN_BAD_CAPTIONS = ("a train station in city",)


@dataclass(frozen=True)
class Protocol:
    """What pins a benchmark's numbers.

    Attributes:
        name: as on the command line.
        metrics: which are computed, in the order of the table.
        clip: name of the CLIP on the hub.
        dino: name of the DINO on the hub.
        clip_preprocess: how a picture enters CLIP.
        dino_preprocess: how it enters DINO.
        resize_filter: PIL's filter that brings an edited picture of another size to that of its
            reference, for L1 and L2 alone; CLIP and DINO take the picture as it is.
        dtype: arithmetic of the networks; the metrics themselves are float64.
        caption_filter: "none", or "emu-known-bad", which leaves out items whose two captions are
            equal or one of them a known wrong one, in all metrics and all rows.
        captions: which of MagicBrush's two captions of a picture is meant, "local" (what was
            edited) or "global" (the whole picture); the Emu Edit test set has one kind.
        reference: what an edited picture is compared with, "input" or "ground truth".
        benchmarks: those it is defined for.
        source: who says so.
        captions_read: "as written", or "mended" before CLIP reads them as OpenAI's tokenizer does.
    """

    name: str
    metrics: tuple[str, ...]
    clip: str
    dino: str
    clip_preprocess: Preprocess
    dino_preprocess: Preprocess
    resize_filter: Filter
    dtype: str
    caption_filter: str
    captions: str
    reference: str
    benchmarks: tuple[str, ...]
    source: str
    captions_read: str = AS_WRITTEN


_EMU_L14 = Protocol(
    name="emu-l14",
    metrics=EMU_METRICS,
    clip=CLIP_L14,
    dino=DINO_S16,
    clip_preprocess=CLIP_PREPROCESS,
    dino_preprocess=DINO_PREPROCESS,
    resize_filter="bicubic",
    dtype="float32",
    caption_filter=NO_FILTER,
    captions="global",
    reference=INPUT,
    benchmarks=("emu-edit", "magicbrush"),
    source=(
        "metrics: Emu Edit, arXiv:2311.10089, which names no networks; CLIP ViT-L/14 and all "
        "captions as OmniGen says (its issue 164); dino_vits16, resize filter and float32: ours"
    ),
)
_ALL = (
    replace(
        _EMU_L14,
        name="emu-b32",
        clip=CLIP_B32,
        source="metrics: Emu Edit, arXiv:2311.10089, which names no networks; networks as "
        "UltraEdit used them (its issues 18 and 25); resize filter and float32: ours",
    ),
    _EMU_L14,
    replace(
        _EMU_L14,
        name="emu-l14-filtered",
        caption_filter=KNOWN_BAD,
        source="as emu-l14, without the items whose two captions are equal, as ICEdit did (its "
        "issue 69), and without the captions known to be wrong",
    ),
    replace(
        _EMU_L14,
        name="magicbrush",
        metrics=MAGICBRUSH_METRICS,
        clip=CLIP_B32,
        # as the authors' script, but for its float16 of CLIP on a GPU; "bicubic" is PIL's default
        captions="local",
        reference=GROUND_TRUTH,
        benchmarks=("magicbrush",),
        source="MagicBrush, arXiv:2306.10012, and its evaluation script; captions: its issue 17",
        captions_read=MENDED,
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
DEFAULTS = {"emu-edit": "emu-l14", "magicbrush": "magicbrush"}


def protocol_for(benchmark: str, name: str | None) -> Protocol:
    """Find the protocol of that name, or the benchmark's default.

    Raises:
        InputError: if there is no such protocol, or it is not defined for the benchmark.
    """
    protocol = PROTOCOLS.get(DEFAULTS[benchmark] if name is None else name)
    if protocol is None:
        known, hint = ", ".join(PROTOCOLS), closest(str(name), list(PROTOCOLS))
        raise InputError(f"unknown protocol {name!r}; known protocols: {known}.{hint}")
    if benchmark not in protocol.benchmarks:
        fitting = ", ".join(p.name for p in _ALL if benchmark in p.benchmarks)
        needs = "has no ground truth" if protocol.reference == GROUND_TRUTH else "is another"
        raise InputError(
            f"protocol {protocol.name} is not for the benchmark {benchmark}, which {needs}; "
            f"give one of {fitting}"
        )
    return protocol


def is_left_out(protocol: Protocol, captions: Sequence[str]) -> bool:
    """Say whether the protocol's caption filter leaves out an item with these two captions.

    Compared without case, blanks at the ends and a final full stop.
    """
    if protocol.caption_filter == NO_FILTER:
        return False
    first, *rest = (caption.strip().rstrip(".").strip().casefold() for caption in captions)
    return first in rest or not {first, *rest}.isdisjoint(KNOWN_BAD_CAPTIONS)
