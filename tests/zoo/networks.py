"""The networks of this folder by name, small for tests and full size for benchmarks, with their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from regraft.testing import randomise
from tests.zoo.convnext import ConvNeXt
from tests.zoo.encoder_decoders import t5, whisper
from tests.zoo.mixer import Mixer
from tests.zoo.mobilenet import MobileNet, Row, v2_rows, v3_rows
from tests.zoo.resnet import ResNet
from tests.zoo.tagger import Tagger
from tests.zoo.unet import UNet

Sizes = Mapping[str, int]

VOCABULARY = 1000


@dataclass(frozen=True)
class Argument:
    """A tensor argument: numbers and names of sizes for its shape; token ids or normal numbers."""

    shape: tuple[int | str, ...]
    tokens: bool = False

    def draw(self, sizes: Sizes, generator: torch.Generator) -> Tensor:
        shape = [n if isinstance(n, int) else sizes[n] for n in self.shape]
        if self.tokens:
            return torch.randint(3, VOCABULARY, shape, generator=generator)
        return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Network:
    """A network and how it is called.

    Fields:
        name: as in ``NETWORKS``.
        workload: the full form in a line.
        small, full: makers of the two forms.
        arguments: the keyword arguments, by name. A size named here may vary, unless it is in ``fixed``.
        example: the sizes a dynamic compile of the small form starts from.
        tried: other sizes of the small form.
        at_full: the sizes of the full form.
        fixed: sizes that the network's weights fix.
    """

    name: str
    workload: str
    small: Callable[[], nn.Module]
    full: Callable[[], nn.Module]
    arguments: Mapping[str, Argument]
    example: Sizes
    tried: tuple[Sizes, ...]
    at_full: Sizes
    fixed: frozenset[str] = field(default_factory=frozenset)

    def make(self, form: str = "small", dtype: torch.dtype = torch.float32) -> nn.Module:
        """A network in eval mode with weights drawn from seed 0; ``form`` is ``small`` or ``full``."""
        model = {"small": self.small, "full": self.full}[form]()
        return randomise(model.eval(), seed=0).to(dtype)

    def inputs(self, sizes: Sizes, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        drawn = {name: argument.draw(sizes, generator) for name, argument in self.arguments.items()}
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in drawn.items()}

    def dynamic(self) -> dict[str, dict[int, Any]]:
        """``dynamic_shapes`` that leaves every size open but those in ``fixed``."""
        return {
            name: {
                axis: Dim.AUTO
                for axis, size in enumerate(argument.shape)
                if isinstance(size, str) and size not in self.fixed
            }
            for name, argument in self.arguments.items()
        }


IMAGES = {"images": Argument(("batch", 3, "height", "width"))}
AT_224 = {"batch": 1, "height": 224, "width": 224}


def _images(batch: int, height: int, width: int) -> Sizes:
    return {"batch": batch, "height": height, "width": width}


_SMALL_V2 = (Row(3, 16, 8, False, False, 1), Row(3, 48, 16, False, False, 2), Row(3, 96, 16, False, False, 1))
_SMALL_V3 = (Row(3, 16, 16, False, False, 1), Row(5, 48, 24, True, True, 2), Row(5, 96, 24, True, True, 1))


def _unet(upsampling: str, tried: tuple[Sizes, ...]) -> Network:
    return Network(
        f"unet_{upsampling}",
        f"U-Net, 32 to 256 channels, {upsampling} upsampling, images [1, 3, 128, 128]",
        lambda: UNet(8, 2, 3, upsampling),
        lambda: UNet(32, 3, 21, upsampling),
        IMAGES,
        example=_images(2, 24, 16),
        tried=tried,
        at_full=_images(1, 128, 128),
    )


NETWORKS: Mapping[str, Network] = {
    network.name: network
    for network in (
        Network(
            "resnet50",
            "ResNet-50, images [1, 3, 224, 224]",
            lambda: ResNet(8, (2, 1, 1, 1), 10),
            lambda: ResNet(64, (3, 4, 6, 3), 1000),
            IMAGES,
            example=_images(2, 64, 48),
            tried=(_images(1, 33, 65), _images(5, 64, 64)),
            at_full=AT_224,
        ),
        Network(
            "mobilenet_v2",
            "MobileNetV2, images [1, 3, 224, 224]",
            lambda: MobileNet(2, 16, _SMALL_V2, 64, 10),
            lambda: MobileNet(2, 32, v2_rows(), 1280, 1000),
            IMAGES,
            example=_images(2, 32, 24),
            tried=(_images(1, 17, 31), _images(5, 32, 32)),
            at_full=AT_224,
        ),
        Network(
            "mobilenet_v3",
            "MobileNetV3-Large, images [1, 3, 224, 224]",
            lambda: MobileNet(3, 16, _SMALL_V3, 64, 10),
            lambda: MobileNet(3, 16, v3_rows(), 960, 1000),
            IMAGES,
            example=_images(2, 32, 24),
            tried=(_images(1, 17, 31), _images(5, 32, 32)),
            at_full=AT_224,
        ),
        _unet("transposed", (_images(1, 8, 8), _images(3, 20, 36))),
        _unet("nearest", (_images(1, 13, 9), _images(3, 20, 37))),
        _unet("bilinear", (_images(1, 13, 9), _images(3, 20, 37))),
        Network(
            "convnext",
            "ConvNeXt-T, images [1, 3, 224, 224]",
            lambda: ConvNeXt((16, 32), (1, 2), 10),
            lambda: ConvNeXt((96, 192, 384, 768), (3, 3, 9, 3), 1000),
            IMAGES,
            example=_images(2, 32, 24),
            tried=(_images(1, 17, 41), _images(5, 32, 32)),
            at_full=AT_224,
        ),
        Network(
            "mixer",
            "Mixer-B/16, images [1, 3, 224, 224]",
            lambda: Mixer(32, 8, 32, 2, (24, 64)),
            lambda: Mixer(224, 16, 768, 12, (384, 3072)),
            IMAGES,
            example=_images(2, 32, 32),
            tried=(_images(1, 32, 32), _images(5, 32, 32)),
            at_full=AT_224,
            fixed=frozenset(("height", "width")),
        ),
        Network(
            "tagger",
            "tagger, 2-layer bidirectional LSTM of 256, tokens [1, 64]",
            lambda: Tagger(VOCABULARY, 24, 16, 2, 7),
            lambda: Tagger(VOCABULARY, 256, 256, 2, 20),
            {"tokens": Argument(("batch", "length"), tokens=True)},
            example={"batch": 2, "length": 9},
            tried=({"batch": 1, "length": 9}, {"batch": 5, "length": 9}),
            at_full={"batch": 1, "length": 64},
            fixed=frozenset(("length",)),  # torch.export fixes the length that an LSTM runs over
        ),
        Network(
            "t5",
            "T5, 512 wide, 6 + 6 layers, 8 heads, source [1, 128], target [1, 32]",
            lambda: t5(64, 4, 128, 2),
            lambda: t5(512, 8, 2048, 6),
            {
                "input_ids": Argument(("batch", "source"), tokens=True),
                "decoder_input_ids": Argument(("batch", "target"), tokens=True),
            },
            example={"batch": 2, "source": 9, "target": 6},
            tried=({"batch": 1, "source": 13, "target": 1}, {"batch": 3, "source": 40, "target": 17}),
            at_full={"batch": 1, "source": 128, "target": 32},
        ),
        Network(
            "whisper",
            "Whisper, 384 wide, 4 + 4 layers, 6 heads, 1500 positions, target [1, 32]",
            lambda: whisper(64, 4, 128, 2, 20),
            lambda: whisper(384, 6, 1536, 4, 1500),
            {
                "input_features": Argument(("batch", 80, "frames")),
                "decoder_input_ids": Argument(("batch", "target"), tokens=True),
            },
            example={"batch": 2, "frames": 40, "target": 6},
            tried=({"batch": 1, "frames": 40, "target": 1}, {"batch": 3, "frames": 40, "target": 17}),
            at_full={"batch": 1, "frames": 3000, "target": 32},
            fixed=frozenset(("frames",)),
        ),
    )
}
