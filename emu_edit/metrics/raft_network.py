"""RAFT, the large one, with the names and shapes that torchvision's published weights have.

Both frames become features at an eighth of their size. All pairs of features are correlated once;
from then on a recurrent unit looks up the correlations around where each point is believed to be,
and mends the flow, again and again. The last flow is brought to full size by weights of its own.

Channels are read off the weights; four levels of correlations, each seen four steps around, are
what the network is. Flow is (x, y) in pixels to the right and down.

Source: Teed & Deng 2020, arXiv:2003.12039, section 3 and appendix A; names of weights as in the
file raft_large_C_T_SKHT_V2-ff5fadd5.pth, whose residual blocks have an activation more and biases
before norms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from emu_edit.errors import InputError
from emu_edit.metrics.published_weights import PublishedWeights

STRIDE = 8  # pixels of a frame to one of the features
LEVELS, RADIUS = 4, 4  # of correlations
CORRELATIONS = LEVELS * (2 * RADIUS + 1) ** 2
MASK_SCALE = 0.25  # of the upsampling's weights, as the weights were trained

Flow = Float[Tensor, "b 2 h w"]
Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class RaftSizes:
    """Channels of the network; those of the published one in brackets.

    Attributes:
        features: of the feature encoder's first layer and stage, its second and third stage, and
            its last layer (64, 96, 128, 256).
        context: the same of the context encoder (64, 96, 128, 256); the last is more than `hidden`.
        correlations: of the motion encoder's two layers that read correlations (256, 192).
        flow: of its two that read the flow (128, 64).
        motion: of what it returns, the flow itself not counted (126).
        hidden: of the recurrent unit (128).
        head: of the flow head (256).
        mask: of what predicts the upsampling (256).
    """

    features: tuple[int, int, int, int]
    context: tuple[int, int, int, int]
    correlations: tuple[int, int]
    flow: tuple[int, int]
    motion: int
    hidden: int
    head: int
    mask: int


class Raft(nn.Module):
    """Two frames to the flow from the first to the second."""

    def __init__(self, sizes: RaftSizes) -> None:
        super().__init__()
        self.feature_encoder = Encoder(sizes.features, nn.InstanceNorm2d)
        self.context_encoder = Encoder(sizes.context, nn.BatchNorm2d)
        self.update_block = Update(sizes)
        self.mask_predictor = MaskPredictor(sizes)
        self._hidden = sizes.hidden

    @staticmethod
    def of_weights(weights: PublishedWeights) -> "Raft":
        """Build the network that the weights are for, and give it them.

        Raises:
            InputError: if a weight is missing, has another shape than the others ask for, or is
                none of RAFT's.
        """
        with torch.device("meta"):
            network = Raft(_sizes(weights))
        weights.give(network)
        return network

    def forward(
        self,
        before: Float[Tensor, "b 3 h w"],
        after: Float[Tensor, "b 3 h w"],
        updates: int,
    ) -> Flow:
        """Compute the flow of frames in [-1, 1] after so many updates.

        Height and width are multiples of 8, at least 64: the coarsest correlations are an eighth
        of the features, and those of at least one.
        """
        pyramid = correlations(*self.feature_encoder(torch.cat([before, after])).chunk(2))
        context = self.context_encoder(before)
        hidden, context = context[:, : self._hidden].tanh(), context[:, self._hidden :].relu()
        rows, columns = (torch.arange(n).to(context) for n in context.shape[-2:])
        start = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))  # 2 h w
        flow = torch.zeros_like(start).expand(len(before), -1, -1, -1)
        for _ in range(updates):
            hidden = self.update_block(hidden, context, looked_up(pyramid, start + flow), flow)
            flow = flow + self.update_block.flow_head(hidden)
        return upsampled(flow, self.mask_predictor(hidden))


class Encoder(nn.Module):
    """A frame to features at an eighth of its size."""

    def __init__(self, channels: tuple[int, int, int, int], norm: Norm) -> None:
        super().__init__()
        one, two, three, last = channels
        self.convnormrelu = _layer(3, one, 7, stride=2, norm=norm)
        self.layer1 = _stage(one, one, 1, norm)
        self.layer2 = _stage(one, two, 2, norm)
        self.layer3 = _stage(two, three, 2, norm)
        self.conv = nn.Conv2d(three, last, 1)

    def forward(self, frames: Float[Tensor, "b 3 _ _"]) -> Float[Tensor, "b c h w"]:
        """Run all layers; the last has no activation."""
        return self.conv(self.layer3(self.layer2(self.layer1(self.convnormrelu(frames)))))


class Residual(nn.Module):
    """Two convolutions, added to what comes in, or to a projection of it where it shrinks."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.convnormrelu1 = _layer(inputs, outputs, 3, stride=stride, norm=norm)
        self.convnormrelu2 = _layer(outputs, outputs, 3, norm=norm)
        self.downsample = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), norm(outputs))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _ _ _"]:
        """Run both ways; three activations in all."""
        return (self.downsample(x) + self.convnormrelu2(self.convnormrelu1(x))).relu()


class Update(nn.Module):
    """Mends the hidden state by what is seen where the flow leads; `flow_head` reads it."""

    def __init__(self, sizes: RaftSizes) -> None:
        super().__init__()
        self.motion_encoder = MotionEncoder(sizes)
        context = sizes.context[-1] - sizes.hidden
        self.recurrent_block = Recurrent(sizes.hidden, context + sizes.motion + 2)
        self.flow_head = FlowHead(sizes.hidden, sizes.head)

    def forward(
        self,
        hidden: Float[Tensor, "b c h w"],
        context: Float[Tensor, "b _ h w"],
        seen: Float[Tensor, "b _ h w"],
        flow: Flow,
    ) -> Float[Tensor, "b c h w"]:
        """Return the next hidden state."""
        return self.recurrent_block(
            hidden, torch.cat([context, self.motion_encoder(flow, seen)], 1)
        )


class MotionEncoder(nn.Module):
    """Flow and correlations to features, behind which the flow itself stands."""

    def __init__(self, sizes: RaftSizes) -> None:
        super().__init__()
        self.convcorr1 = _layer(CORRELATIONS, sizes.correlations[0], 1)
        self.convcorr2 = _layer(*sizes.correlations, 3)
        self.convflow1 = _layer(2, sizes.flow[0], 7)
        self.convflow2 = _layer(*sizes.flow, 3)
        self.conv = _layer(sizes.correlations[1] + sizes.flow[1], sizes.motion, 3)

    def forward(self, flow: Flow, seen: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ h w"]:
        """Run both branches and join them."""
        branches = [self.convcorr2(self.convcorr1(seen)), self.convflow2(self.convflow1(flow))]
        return torch.cat([self.conv(torch.cat(branches, 1)), flow], 1)


class Recurrent(nn.Module):
    """A recurrent unit along rows, then one along columns: a wide view with few weights."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        self.convgru1 = Gru(hidden, inputs, (1, 5))
        self.convgru2 = Gru(hidden, inputs, (5, 1))

    def forward(
        self, hidden: Float[Tensor, "b c h w"], x: Float[Tensor, "b _ h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Run both."""
        return self.convgru2(self.convgru1(hidden, x), x)


class Gru(nn.Module):
    """A gated recurrent unit whose products are convolutions, eqs. (3) to (6)."""

    def __init__(self, hidden: int, inputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.convz, self.convr, self.convq = (
            nn.Conv2d(hidden + inputs, hidden, kernel, padding="same") for _ in range(3)
        )

    def forward(
        self, hidden: Float[Tensor, "b c h w"], x: Float[Tensor, "b _ h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return z = how much is new, q = what is: (1 - z) hidden + z q."""
        both = torch.cat([hidden, x], 1)
        z, r = self.convz(both).sigmoid(), self.convr(both).sigmoid()
        q = self.convq(torch.cat([r * hidden, x], 1)).tanh()
        return (1 - z) * hidden + z * q


class FlowHead(nn.Module):
    """The hidden state to how the flow is to be mended, in pixels of the features."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Flow:
        """Run both layers."""
        return self.conv2(self.conv1(hidden).relu())


class MaskPredictor(nn.Module):
    """The hidden state to the weights of `upsampled`."""

    def __init__(self, sizes: RaftSizes) -> None:
        super().__init__()
        self.convrelu = _layer(sizes.hidden, sizes.mask, 3)
        self.conv = nn.Conv2d(sizes.mask, 9 * STRIDE**2, 1)

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 576 h w"]:
        """Run both layers."""
        return MASK_SCALE * self.conv(self.convrelu(hidden))


def correlations(
    before: Float[Tensor, "b c h w"], after: Float[Tensor, "b c h w"]
) -> list[Float[Tensor, "n 1 _ _"]]:
    """Correlate every feature of one frame with every one of the other, at four sizes.

        <before(p), after(q)> / sqrt(c), then averaged over q by two in both directions

    Returns:
        for each of the b h w places p, one picture of q per size.
    """
    b, c, h, w = before.shape
    products = before.flatten(2).transpose(1, 2) @ after.flatten(2) / c**0.5
    pyramid = [products.reshape(b * h * w, 1, h, w)]
    for _ in range(LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return pyramid


def looked_up(
    pyramid: list[Float[Tensor, "n 1 _ _"]], at: Float[Tensor, "b 2 h w"]
) -> Float[Tensor, "b 324 h w"]:
    """Read the correlations around `at`, each level within four of its own pixels, zero outside.

    Channels are ordered by level, then by x, then by y, as the weights expect.
    """
    b, _, h, w = at.shape
    steps = torch.arange(-RADIUS, RADIUS + 1).to(at)
    around = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), 2)  # x outer, y inner
    centres = at.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    read: list[Tensor] = []
    for level, products in enumerate(pyramid):
        size = torch.tensor(products.shape[:1:-1]).to(at)  # width, height
        grid = (2 * (centres / 2**level + around) + 1) / size - 1
        read.append(F.grid_sample(products, grid, align_corners=False).view(b, h, w, -1))
    return torch.cat(read, 3).permute(0, 3, 1, 2)


def upsampled(flow: Flow, mask: Float[Tensor, "b 576 h w"]) -> Float[Tensor, "b 2 8*h 8*w"]:
    """Make the flow eight times as large, each pixel a mean of the nine flows around it.

    `mask` is, before softmax, how much each of the nine counts in each of 8 x 8 pixels.
    """
    weights = mask.unflatten(1, (9, STRIDE, STRIDE)).softmax(1)
    nine = F.unfold(STRIDE * flow, 3, padding=1).view(len(flow), 2, 9, *flow.shape[-2:])
    return torch.einsum("bnyxhw,bcnhw->bchywx", weights, nine).flatten(4, 5).flatten(2, 3)


def _layer(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, norm: Norm | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
    return nn.Sequential(conv, *([] if norm is None else [norm(outputs)]), nn.ReLU())


def _stage(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        Residual(inputs, outputs, stride, norm), Residual(outputs, outputs, 1, norm)
    )


def _sizes(weights: PublishedWeights) -> RaftSizes:
    """Read the sizes off the weights that tell them."""

    def width(name: str) -> int:
        return weights.shape(f"{name}.weight", 4)[0]

    def encoder(name: str) -> tuple[int, int, int, int]:
        second, third = (width(f"{name}.layer{i}.0.convnormrelu1.0") for i in (2, 3))
        return width(f"{name}.convnormrelu.0"), second, third, width(f"{name}.conv")

    context, hidden = (
        encoder("context_encoder"),
        width("update_block.recurrent_block.convgru1.convz"),
    )
    if context[-1] <= hidden:
        raise InputError(
            f"{weights.where}: context_encoder.conv has {context[-1]} channels, needs more than "
            f"the {hidden} of the hidden state; get the file again"
        )
    motion = "update_block.motion_encoder"
    return RaftSizes(
        features=encoder("feature_encoder"),
        context=context,
        correlations=(width(f"{motion}.convcorr1.0"), width(f"{motion}.convcorr2.0")),
        flow=(width(f"{motion}.convflow1.0"), width(f"{motion}.convflow2.0")),
        motion=width(f"{motion}.conv.0"),
        hidden=hidden,
        head=width("update_block.flow_head.conv1"),
        mask=width("mask_predictor.convrelu.0"),
    )
