"""The null branches of a conditioning, as guidance needs them at inference.

Null text is the encoding of "", null image is zeros in latent space; the task is kept in every
branch, because the task says which kind of picture is wanted even where text and source are
withheld.
Source: Brooks et al. 2023, arXiv:2211.09800, section 3.2.1 (branches); Sheynin et al. 2023,
arXiv:2311.10089 (task).
"""

from dataclasses import replace

import torch

from emu_edit.models.interfaces import Conditioning, TextFeatures


def null_image(cond: Conditioning) -> Conditioning:
    """Return `cond` without its source picture (zeros in latent space)."""
    return replace(cond, z_source=torch.zeros_like(cond.z_source))


def with_null_text(cond: Conditioning, null_text: TextFeatures) -> Conditioning:
    """Return `cond` with `null_text` for text, the encoding of "" (b = 1, same token count)."""
    b = cond.v_task.shape[0]
    text = TextFeatures(
        tokens=null_text.tokens.expand(b, -1, -1).to(cond.text.tokens.dtype),
        mask=null_text.mask.expand(b, -1),
    )
    return replace(cond, text=text)


def branches(
    cond: Conditioning,
    null_text: TextFeatures,
    needed: tuple[bool, bool, bool] = (True, True, True),
) -> Conditioning:
    """Stack branches of dual guidance along the batch: those needed of (full, image only, nothing).

    Args:
        cond: what the full branch is told.
        null_text: the encoding of "" or of a negative text (b = 1), as many tokens as `cond.text`.
        needed: which of the three to stack, at least one; the order is kept.
    """
    image_only = with_null_text(cond, null_text)
    three = (cond, image_only, null_image(image_only))
    return Conditioning.cat([
        branch for branch, is_needed in zip(three, needed, strict=True) if is_needed
    ])
