"""The peer of the benchmarks: HRNet for semantic segmentation in PyTorch, eager.

Written from the paper (arXiv 1908.07919) with the architecture and the parameter names of the
official segmentation code, so that its checkpoints load with `load_state_dict(strict=True)` and
its cost is that of the official model: convolution, batch normalization and activation as
separate modules, and a head which convolves the concatenation of the upsampled streams.

Imports nothing but torch: it also runs in an environment without this project.
"""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Spec:
    """Depth and width, see `hrnet_jax.models.variants` for the meaning of the fields."""

    width: int
    layer1_blocks: int = 4
    layer1_planes: int = 64
    num_modules: tuple[int, int, int] = (1, 4, 3)
    num_blocks: int = 4


SPECS = {
    "w18_small_v1": Spec(16, 1, 32, (1, 1, 1), 2),
    "w18_small_v2": Spec(18, 2, 64, (1, 3, 2), 2),
    **{f"w{width}": Spec(width) for width in (18, 30, 32, 40, 44, 48, 64)},
}


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def _conv_bn(inputs: int, outputs: int, size: int, stride: int = 1, relu: bool = True):
    layers = [_conv(inputs, outputs, size, stride), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = _conv(channels, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; four times `planes` channels come out."""

    def __init__(self, inputs: int, planes: int):
        super().__init__()
        outputs = 4 * planes
        self.conv1 = _conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs:
            self.downsample = _conv_bn(inputs, outputs, 1, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(y + shortcut)


class ExchangeModule(nn.Module):
    """Parallel branches of basic blocks, then every stream becomes a sum over all streams."""

    def __init__(self, channels: list[int], num_blocks: int, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(c) for _ in range(num_blocks))) for c in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._bring(channels, i, j) for j in range(len(channels)))
            for i in range(len(channels))
        )
        self.relu = nn.ReLU(inplace=True)

    @staticmethod
    def _bring(channels: list[int], target: int, source: int) -> nn.Module | None:
        if source == target:
            return None
        if source > target:
            return _conv_bn(channels[source], channels[target], 1, relu=False)
        steps = []
        for k in range(target - source):
            last = k == target - source - 1
            outputs = channels[target] if last else channels[source]
            steps.append(_conv_bn(channels[source], outputs, 3, 2, relu=not last))
        return nn.Sequential(*steps)

    def forward(self, streams: list[torch.Tensor]) -> list[torch.Tensor]:
        streams = [branch(x) for branch, x in zip(self.branches, streams, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse_layers):
            total = None
            for j, layer in enumerate(row):
                x = streams[j] if layer is None else layer(streams[j])
                if j > i:
                    x = F.interpolate(
                        x,
                        size=streams[i].shape[2:],
                        mode="bilinear",
                        align_corners=self.align_corners,
                    )
                total = x if total is None else total + x
            fused.append(self.relu(total))
        return fused


class HRNet(nn.Module):
    """Images [N, 3, H, W] to logits [N, classes, ceil(H / 4), ceil(W / 4)]."""

    def __init__(self, variant: str, num_classes: int = 19, align_corners: bool = False):
        super().__init__()
        spec = SPECS[variant]
        self.align_corners = align_corners
        self.conv1 = _conv(3, 64, 3, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = _conv(64, 64, 3, 2)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        outputs = 4 * spec.layer1_planes
        self.layer1 = nn.Sequential(
            *(
                Bottleneck(64 if k == 0 else outputs, spec.layer1_planes)
                for k in range(spec.layer1_blocks)
            )
        )
        channels = [outputs]
        for stage, num_modules in enumerate(spec.num_modules):
            wanted = [spec.width * 2**k for k in range(stage + 2)]
            self.add_module(f"transition{stage + 1}", self._transition(channels, wanted))
            modules = (
                ExchangeModule(wanted, spec.num_blocks, align_corners) for _ in range(num_modules)
            )
            self.add_module(f"stage{stage + 2}", nn.Sequential(*modules))
            channels = wanted
        total = sum(channels)
        self.last_layer = nn.Sequential(
            nn.Conv2d(total, total, 1),
            nn.BatchNorm2d(total),
            nn.ReLU(inplace=True),
            nn.Conv2d(total, num_classes, 1),
        )

    @staticmethod
    def _transition(channels: list[int], wanted: list[int]) -> nn.ModuleList:
        layers = []
        for k, features in enumerate(wanted):
            if k >= len(channels):
                layers.append(nn.Sequential(_conv_bn(channels[-1], features, 3, 2)))
            elif channels[k] != features:
                layers.append(_conv_bn(channels[k], features, 3))
            else:
                layers.append(None)
        return nn.ModuleList(layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        streams = [self.layer1(x)]
        for stage in (1, 2, 3):
            transition = getattr(self, f"transition{stage}")
            streams = [
                streams[k] if layer is None else layer(streams[min(k, len(streams) - 1)])
                for k, layer in enumerate(transition)
            ]
            streams = getattr(self, f"stage{stage + 1}")(streams)
        size = streams[0].shape[2:]
        upsampled = [
            F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)
            for x in streams[1:]
        ]
        return self.last_layer(torch.cat([streams[0], *upsampled], 1))
