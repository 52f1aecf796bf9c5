"""Cross-attention with the 4 task tokens attended beside the text tokens, not among them.

The task tokens come as the last keys of the sequence. In one common softmax even zero vectors would
take their share of attention away from the text (key 0 gives logit 0, not minus infinity), so a
pretrained network would not be unchanged at step 0, and a network told no task would hear its text
more faintly. Two softmaxes that share q, k, v:

    out = softmax(q k_text) v_text + softmax(q k_task) v_task

With zero task tokens v_task = W_v 0 = 0 (to_v has no bias): the second term is exactly 0, while its
gradient with respect to the tokens is not. It costs no time that could be measured (11 M
parameters, CPU). Nothing here has weights, so `unet/` stays a plain diffusers directory; whoever
loads it with diffusers alone has to call `attend_task_tokens` (without it, diffusers puts the
tokens into the common softmax).
Source: the two sums follow IP-Adapter, Ye et al. 2023, arXiv:2308.06721, eq. 5; the 4 tokens follow
Movie Gen, arXiv:2410.13720, section 5, which says it follows Emu Edit, arXiv:2311.10089.
"""

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

NUM_TASK_TOKENS = 4


class TaskTokenAttention:
    """Processor for those of diffusers' `Attention` layers whose keys end with the task tokens."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b l d"],
        attention_mask: Float[Tensor, "b 1 l"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Attend to text and task apart and add.

        The argument names are diffusers'; `attention_mask` is the bias it makes of the key mask.
        """
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None
        q = _heads(attn.to_q(hidden_states), attn.heads)
        k = _heads(attn.to_k(encoder_hidden_states), attn.heads)
        v = _heads(attn.to_v(encoder_hidden_states), attn.heads)
        text, task = slice(None, -NUM_TASK_TOKENS), slice(-NUM_TASK_TOKENS, None)
        bias = None if attention_mask is None else attention_mask[:, None, :, text]
        out = functional.scaled_dot_product_attention(
            q, k[:, :, text], v[:, :, text], attn_mask=bias
        )
        out = out + functional.scaled_dot_product_attention(q, k[:, :, task], v[:, :, task])
        projection, dropout = attn.to_out
        return dropout(projection(rearrange(out, "b heads n c -> b n (heads c)")))


def attend_task_tokens(unet: UNet2DConditionModel) -> None:
    """Install `TaskTokenAttention` in every cross-attention of `unet`."""
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock) and module.attn2 is not None:
            module.attn2.set_processor(TaskTokenAttention())  # pyright: ignore[reportArgumentType]


def _heads(x: Float[Tensor, "b n c"], heads: int) -> Float[Tensor, "b heads n d"]:
    return rearrange(x, "b n (heads d) -> b heads n d", heads=heads)
