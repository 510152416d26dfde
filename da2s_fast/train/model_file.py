"""Trained models as single files that hold all it takes to use them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from da2s_fast.errors import UserError
from da2s_fast.nn.derived_network import DerivedNasBench201Network, DerivedNetwork
from da2s_fast.search.checkpoint import write_atomically
from da2s_fast.spaces import Genotype

DerivedModel = DerivedNetwork | DerivedNasBench201Network
FORMAT = "da2s_fast model 1"


@dataclass(frozen=True)
class ModelInfo:
    """How a model is built and what its inputs and outputs mean.

    Attributes:
        genotype: the architecture as text, see `Genotype.parse`.
        channels: channels of the first cells.
        cells: number of cells (NAS-Bench-201: per stage).
        auxiliary: whether there is an auxiliary head.
        stem: "cifar" or "imagenet", see `DerivedNetwork`.
        in_channels: channels of the images.
        image_size: height and width of the images it was trained on.
        classes: the class names; score k belongs to ``classes[k]``.
        mean: mean of each channel, on the scale 0..1, that inputs are normalized with.
        std: standard deviation of each channel, likewise.
    """

    genotype: str
    channels: int
    cells: int
    auxiliary: bool
    stem: str
    in_channels: int
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def build(self) -> DerivedModel:
        """The network with weights drawn from torch's global generator, in training mode."""
        genotype = Genotype.parse(self.genotype)
        sizes = (self.channels, len(self.classes), self.cells)
        if genotype.reduce is None:
            return DerivedNasBench201Network(genotype.normal, *sizes, in_channels=self.in_channels)
        return DerivedNetwork(
            genotype.normal,
            genotype.reduce,
            *sizes,
            in_channels=self.in_channels,
            auxiliary=self.auxiliary,
            stem=self.stem,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.in_channels, self.image_size, self.image_size

    def to_json(self) -> str:
        """All fields as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """What `to_json` wrote; KeyError, TypeError or ValueError for anything else."""
        fields = json.loads(text)
        for name in ("classes", "mean", "std"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def save_model(path: str | Path, model: DerivedModel, info: ModelInfo) -> None:
    """Write weights and information into one file, atomically.

    The file is a dict that ``torch.load(path, weights_only=True)`` reads: "state_dict" (as that
    of DARTS's networks), "info" (JSON), "sha256" and "format".

    Raises:
        UserError: the file cannot be written.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    text = info.to_json()
    content = {
        "format": FORMAT,
        "info": text,
        "state_dict": state,
        "sha256": _digest(text, state),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(Path(path), lambda file: file.write(buffer.getvalue()))


def load_model(
    path: str | Path, *, device: torch.device | str = "cpu"
) -> tuple[DerivedModel, ModelInfo]:
    """Read what `save_model` wrote; the logits are those of the saved model to the bit.

    Returns:
        The network, in evaluation mode on ``device``, and what is known about it.

    Raises:
        UserError: the file is missing, damaged or no model, or its genotype names an operation
            that is not registered.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        state = content["state_dict"]
        if _digest(content["info"], state) != content["sha256"]:
            raise ValueError("its checksum does not match its content")
        info = ModelInfo.from_json(content["info"])
    except FileNotFoundError:
        raise UserError(f"there is no model {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror}") from None
    except Exception as error:
        # Whatever a foreign or damaged file makes the readers raise, the user needs one sentence.
        known = isinstance(error, ValueError)
        reason = str(error).splitlines()[0] if known else "it is damaged or something else"
        raise UserError(
            f"{path} is not a model of this program: {reason}; give the run folder of a training "
            "or a .pt file that da2s wrote"
        ) from error
    model = info.build()
    model.load_state_dict(state)
    return model.to(device).eval(), info


def _digest(text: str, state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
