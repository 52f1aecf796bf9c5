"""Withholding conditions: in some samples of training, and in the branches of guidance.

Null text is the encoding of "", null image is zeros in latent space. Guidance keeps the task in
every branch, because it says which kind of picture is wanted even where text and source are
withheld. In training, one uniform decides among losing text only, image only and both, a second one
decides the task independently. Nothing is drawn here: the caller brings the uniforms, keyed by the
sample's place in the stream.
Source: Brooks et al. 2023, arXiv:2211.09800, section 3.2.1 (branches; 5 % text, 5 % image, 5 %
both); Sheynin et al. 2023, arXiv:2311.10089 (the task in all branches); task dropout: ours.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance
from emu_edit.errors import InputError
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.networks import EditNetworks


def null_image(cond: Conditioning) -> Conditioning:
    """Return `cond` without its source picture (zeros in latent space)."""
    return replace(cond, z_source=torch.zeros_like(cond.z_source))


def with_null_text(cond: Conditioning, null_text: TextFeatures) -> Conditioning:
    """Return `cond` with `null_text` for text: one for all rows or one for each, as many tokens."""
    b = cond.v_task.shape[0]
    text = TextFeatures(
        tokens=null_text.tokens.expand(b, -1, -1).to(cond.text.tokens.dtype),
        mask=null_text.mask.expand(b, -1),
    )
    return replace(cond, text=text)


def branches_of_edit(
    networks: EditNetworks,
    latents: Float[Tensor, "b c h w"],
    texts: Sequence[str],
    negative: Sequence[str],
    *,
    v_task: Float[Tensor, "b k"],
    guidance: Guidance,
    pictures: Float[Tensor, "b 3 H W"] | None = None,
) -> Conditioning:
    """Encode what an edit is told, and stack the branches that guidance needs.

    Args:
        networks: of the model.
        latents: of the sources, as `ImageCodec.encode` gives them.
        texts: one for each row.
        negative: what stands where guidance has no text, one for all rows or one for each.
        v_task: of each row.
        guidance: the scales.
        pictures: of the sources, for a text encoder that sees them; None decodes them.

    Raises:
        InputError: if the source is to be withheld from a text encoder that sees it.
    """
    codec, latents = networks.codec, latents.to(networks.device)
    if networks.text_encoder.sees_pictures:
        refuse_withheld(guidance.image)
        pictures = codec.decode(latents) if pictures is None else pictures
    # equal texts are encoded once: what one text gives does not depend on how often it is said
    nulls = list(negative) if len(set(negative)) > 1 else [negative[0]]
    text, null_text = networks.encode_text(list(texts), nulls, pictures)
    cond = Conditioning(text=text, z_source=codec.as_condition(latents), v_task=v_task)
    return branches(cond, null_text, guidance.needed)


def branches(
    cond: Conditioning,
    null_text: TextFeatures,
    needed: tuple[bool, bool, bool] = (True, True, True),
) -> Conditioning:
    """Stack branches of dual guidance along the batch: those needed of (full, image only, nothing).

    `null_text` is the encoding of "" or of a negative text (one for all rows, or one for each), as
    many tokens as `cond.text`; at least one branch is needed, and the order is kept.
    """
    image_only = with_null_text(cond, null_text)
    three = (cond, image_only, null_image(image_only))
    return Conditioning.cat(list(compress(three, needed)))


@dataclass(frozen=True)
class DropoutRates:
    """How often conditions are dropped, each in [0, 1]; text + image + both must not exceed 1.

    Attributes:
        text: share of samples that lose the text only.
        image: share of samples that lose the source picture only.
        both: share of samples that lose text and source picture.
        task: share of samples that lose the task vector, independent of the other three.
    """

    text: float = 0.05
    image: float = 0.05
    both: float = 0.05
    task: float = 0.05

    def __post_init__(self) -> None:
        """Refuse numbers that are not probabilities."""
        for name, rate in asdict(self).items():
            if not 0.0 <= rate <= 1.0:
                raise InputError(
                    f"dropout.{name}={rate!r} is no probability; give a number from 0 to 1"
                )
        total = self.text + self.image + self.both
        if total > 1.0:
            raise InputError(
                f"dropout.text + dropout.image + dropout.both = {total:g} exceeds 1; "
                "they exclude each other, lower one of them"
            )


def refuse_withheld(image_guidance: float, rates: DropoutRates | None = None) -> None:
    """Refuse to withhold the source picture where the text's features show it, null text's too.

    Raises:
        InputError: naming the number that would.
    """
    shown = "the text encoder shows the source picture where it would be withheld"
    if image_guidance != 1:
        raise InputError(f"image guidance is {image_guidance:g}, and {shown}; give 1")
    if rates is not None and rates.image + rates.both > 0:
        raise InputError(
            f"dropout.image={rates.image:g}, dropout.both={rates.both:g}, and {shown}; set both to "
            "0"
        )


def drop(
    cond: Conditioning, null_text: TextFeatures, rates: DropoutRates, u: Float[Tensor, "b 2"]
) -> Conditioning:
    """Withhold text, source picture or task of some samples.

    u[:, 0] in [0, text) loses text, in [text, text + image) the picture, in the next `both` wide
    stretch both; u[:, 1] < task sets v_task to 0. `u` is uniform in [0, 1); on a GPU nothing here
    waits for the device. `null_text`, the encoding of "" (b = 1), has the token count of the text.
    """
    u = u.to(cond.v_task.device)
    r = u[:, 0]
    text_only = r < rates.text
    image_only = (r >= rates.text) & (r < rates.text + rates.image)
    both = (r >= rates.text + rates.image) & (r < rates.text + rates.image + rates.both)
    no_text, no_image, no_task = text_only | both, image_only | both, u[:, 1] < rates.task

    null = with_null_text(cond, null_text).text
    return Conditioning(
        text=TextFeatures(
            tokens=torch.where(no_text[:, None, None], null.tokens, cond.text.tokens),
            mask=torch.where(no_text[:, None], null.mask, cond.text.mask),
        ),
        z_source=cond.z_source.masked_fill(no_image[:, None, None, None], 0.0),
        v_task=cond.v_task.masked_fill(no_task[:, None], 0.0),
    )
