"""How much moves in a clip: the score by which Emu Video chose what it was tuned on at the end.

The paper takes the H.264 motion vectors of its files and keeps a video when the least sum of the
motion score over the frames j - 5 to j + 5, over all j, is above 0.5; of its units it says nothing.
Ours are fractions of the shorter side. Vectors that a file brings along cannot be compared: VP9 and
H.265 export none, and those of H.264 may point several frames back without saying how many (a
picture that moves by 3 pixels a frame was measured at 3 to 17). So the frames of a clip are encoded
again in memory, every frame from the one before it, and the vectors are those of that encoder.
Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 3.2 and appendix (high-motion
fine-tuning).
"""

import io
from collections.abc import Iterator

import av
import numpy as np
from av.codec.context import Flags2
from jaxtyping import Float, UInt8

WINDOW = 11  # frames j - 5 to j + 5
ONE_BACK = (
    "ref=1:bframes=0:scenecut=0:keyint=infinite:weightp=0:rc-lookahead=0:mbtree=0"
    ":me=hex:merange=32:subme=4"
)
# an exhaustive search finds longer vectors, to what only looks alike
OPTIONS = {
    **{"preset": "veryfast", "crf": "20", "threads": "1"},
    "x264-params": f"{ONE_BACK}:log-level=none",
}
LEAST_SIDE = 16  # pixels of a block; less has no vectors to speak of


def motion_score(frames: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Return how much moves in a clip at least for a while, 0 if nothing ever does.

    min over j of m[j - 5] + ... + m[j + 5], where m[t] is the mean length of the motion vectors
    from frame t to frame t - 1 over the picture, in fractions of its shorter side.
    """
    return score_of(frame_motion(frames))


def score_of(motion: Float[np.ndarray, " n"]) -> float:
    """Return the least sum over eleven frames that follow each other; of fewer, 11 times the mean.

    NaN is a frame of which nothing is known, and counts as the mean of the others.
    """
    known = motion[np.isfinite(motion)]
    if not len(known):
        return 0.0
    filled = np.where(np.isfinite(motion), motion, known.mean())
    if len(filled) < WINDOW:
        return float(WINDOW * filled.mean())
    return float(np.lib.stride_tricks.sliding_window_view(filled, WINDOW).sum(axis=1).min())


def frame_motion(frames: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, " n"]:
    """Return m of every frame but the first; NaN where a frame is unlike the one before it."""
    height, width = (side - side % 2 for side in frames.shape[1:3])  # 4:2:0 has even sides
    if len(frames) < 2 or min(height, width) < LEAST_SIDE:
        return np.zeros(max(len(frames) - 1, 0))
    vectors = _vectors(frames[:, :height, :width])
    found = [_mean_length(each, least=height * width / 2) for each in vectors]
    return np.array(found[1:]) / min(height, width)


def _mean_length(vectors: np.ndarray | None, *, least: float) -> float:
    """Return the mean length in pixels over the area that has a vector; NaN if it is too small."""
    if vectors is None or not len(vectors):
        return float("nan")
    area = vectors["w"].astype(np.float64) * vectors["h"]
    length = np.hypot(vectors["motion_x"], vectors["motion_y"]) / vectors["motion_scale"]
    return float((length * area).sum() / area.sum()) if area.sum() >= least else float("nan")


def _vectors(frames: UInt8[np.ndarray, "f h w 3"]) -> Iterator[np.ndarray | None]:
    """Yield the vectors of every frame from the one before it, as FFmpeg's AVMotionVector."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="nut") as output:
        stream = output.add_stream("libx264", rate=25, options=dict(OPTIONS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        decoded = container.streams.video[0]
        decoded.codec_context.flags2 |= Flags2.export_mvs.value
        for frame in container.decode(decoded):
            side_data = frame.side_data.get("MOTION_VECTORS")
            yield None if side_data is None else side_data.to_ndarray()  # type: ignore[attr-defined]
