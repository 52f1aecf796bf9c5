"""The weights of a network as somebody published them: one file, of which nothing is run.

They are held against the network built here for them: every weight it needs is there, in the shape
that the others ask for, and there is no other.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from emu_edit.errors import InputError
from emu_edit.metrics.backbone_files import reading

# the settings of its training lie beside the weights in files of InternVideo, as objects of a class
# that torch does not know and that is read as a plain dict instead; any other class is refused
SETTINGS: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    (OrderedDict, name) for name in ("utils.easydict.EasyDict", "easydict.EasyDict")
]
COUNTER = ".num_batches_tracked"  # of torch's batch norms, a whole number


@dataclass(frozen=True)
class PublishedWeights:
    """Weights by their published names.

    Attributes:
        network: the name of what they are for, in messages.
        where: names the file in messages.
        named: the weights.
    """

    network: str
    where: str
    named: Mapping[str, Tensor]

    @staticmethod
    def read(path: Path, network: str) -> "PublishedWeights":
        """Read a file of safetensors or of torch.

        Raises:
            InputError: if it cannot be read, holds more than weights, or none by name.
        """
        with reading(path):
            if path.suffix == ".safetensors":
                return PublishedWeights(network, str(path), load_file(path))
            with torch.serialization.safe_globals(SETTINGS):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        weights = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
        if not isinstance(weights, dict) or not all(map(_is_weight, weights, weights.values())):
            raise InputError(
                f"{path} holds no weights by name; give the file of the whole {network}"
            )
        return PublishedWeights(network, str(path), weights)

    def shape(self, name: str, axes: int) -> torch.Size:
        """Return the shape of a weight that tells sizes of the network.

        Raises:
            InputError: if it is missing, or has another number of axes or an empty one.
        """
        if name not in self.named:
            self._refuse("lacks", {name})
        found = self.named[name].shape
        if len(found) != axes or 0 in found:
            raise InputError(
                f"{self.where}: {name} is of shape {tuple(found)}, needs {axes} axes; "
                "get the file again"
            )
        return found

    def give(self, network: nn.Module) -> None:
        """Make them the weights of a network, which may lie on torch's device "meta".

        Raises:
            InputError: if one is missing, has another shape, or is none of the network's.
        """
        expected = network.state_dict()
        self._refuse("lacks", expected.keys() - self.named.keys())
        self._refuse(f"has, and {self.network} has not,", self.named.keys() - expected.keys())
        for name, weight in self.named.items():
            if weight.shape != expected[name].shape:
                raise InputError(
                    f"{self.where}: {name} is of shape {tuple(weight.shape)}, needs "
                    f"{tuple(expected[name].shape)} beside the others; get the file again"
                )
        network.load_state_dict(dict(self.named), assign=True)

    def _refuse(self, what: str, names: set[str]) -> None:
        if names:
            raise InputError(
                f"{self.where} {what} {len(names)} weights, e.g. {min(names)}; give the file of "
                f"the whole {self.network}"
            )


def _is_weight(name: object, weight: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(weight, Tensor)
        and (weight.is_floating_point() or name.endswith(COUNTER))
    )
