"""PyTorch counterparts of the benchmarked networks, and an optimized training step for them.

They have the same layers and the same number of trainable parameters as ``conf/arch/resnet20``,
``resnet50`` (with its stem for small images), ``mobilenet_v2`` and ``airbench``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CHUNK = 8192
"""Number of images that are augmented at once, which makes the overhead per step small."""
PADDING = 4


class StandardizedConv2d(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        w = self.weight
        mean = w.mean((1, 2, 3), keepdim=True)
        variance = w.var((1, 2, 3), keepdim=True, unbiased=False)
        w = (w - mean) * torch.rsqrt(variance + 1e-5)
        return self._conv_forward(input, w, self.bias)


class Layers:
    """Factory of a network's convolutions and normalizations."""

    def __init__(self, norm: str) -> None:
        self.norm, _, weight = norm.partition("_")
        self.conv_type = StandardizedConv2d if weight == "ws" else nn.Conv2d

    def conv(self, channels: int, filters: int, size: int, stride: int = 1) -> nn.Module:
        bias = self.norm == "none"
        return self.conv_type(channels, filters, size, stride, size // 2, bias=bias)

    def normalized(self, channels: int) -> nn.Module:
        if self.norm == "gn":
            return nn.GroupNorm(8, channels)
        return nn.BatchNorm2d(channels) if self.norm == "bn" else nn.Identity()

    def conv_norm(self, channels: int, filters: int, size: int, stride: int = 1) -> list[nn.Module]:
        return [self.conv(channels, filters, size, stride), self.normalized(filters)]


class Residual(nn.Module):
    """A residual block; its shortcut is a 1×1 convolution where the shape changes (option B)."""

    def __init__(
        self, layers: Layers, channels: int, outputs: int, stride: int, body: list[nn.Module]
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        changes = stride != 1 or channels != outputs
        self.shortcut = (
            nn.Sequential(*layers.conv_norm(channels, outputs, 1, stride))
            if changes
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def resnet20(norm: str, classes: int, width: int = 16, depth: int = 20) -> nn.Module:
    layers = Layers(norm)
    parts = [*layers.conv_norm(3, width, 3), nn.ReLU(inplace=True)]
    channels = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            outputs, stride = width * 2**stage, 2 if stage and not block else 1
            body = [
                *layers.conv_norm(channels, outputs, 3, stride),
                nn.ReLU(inplace=True),
                *layers.conv_norm(outputs, outputs, 3),
            ]
            parts.append(Residual(layers, channels, outputs, stride, body))
            channels = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*parts, *head)


def resnet50(norm: str, classes: int, width: int = 64) -> nn.Module:
    layers = Layers(norm)
    parts = [*layers.conv_norm(3, width, 3), nn.ReLU(inplace=True)]
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            inner, stride = width * 2**stage, 2 if stage and not block else 1
            body = [
                *layers.conv_norm(channels, inner, 1),
                nn.ReLU(inplace=True),
                *layers.conv_norm(inner, inner, 3, stride),
                nn.ReLU(inplace=True),
                *layers.conv_norm(inner, 4 * inner, 1),
            ]
            parts.append(Residual(layers, channels, 4 * inner, stride, body))
            channels = 4 * inner
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*parts, *head)


def airbench(norm: str, classes: int, width: float = 1.0) -> nn.Module:
    layers = Layers(norm)
    whitening = nn.Conv2d(3, 24, 2)
    whitening.weight.requires_grad_(False)
    parts: list[nn.Module] = [whitening, nn.GELU()]
    channels = 24
    for full_width in (64, 256, 256):
        filters = max(8, int(full_width * width / 8 + 0.5) * 8)
        parts += [
            layers.conv(channels, filters, 3),
            nn.MaxPool2d(2),
            layers.normalized(filters),
            nn.GELU(),
            *layers.conv_norm(filters, filters, 3),
            nn.GELU(),
        ]
        channels = filters
    head = [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(channels, classes, bias=False), Scale(1 / 9)]
    return nn.Sequential(*parts, *head)


class Inverted(nn.Module):
    """An inverted residual block, which adds its input if the shapes match."""

    def __init__(self, body: list[nn.Module], adds: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.adds = adds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet_v2(norm: str, classes: int) -> nn.Module:
    layers = Layers(norm)

    def conv_norm_relu(channels: int, filters: int, size: int) -> list[nn.Module]:
        return [*layers.conv_norm(channels, filters, size), nn.ReLU6(inplace=True)]

    def depthwise(channels: int, stride: int) -> list[nn.Module]:
        bias = layers.norm == "none"
        conv = layers.conv_type(channels, channels, 3, stride, 1, groups=channels, bias=bias)
        return [conv, layers.normalized(channels), nn.ReLU6(inplace=True)]

    parts = conv_norm_relu(3, 32, 3)
    channels = 32
    # Expansion, channels, blocks, stride (Sandler et al. 2018, table 2); the second stage's stride
    # is 1 for small images.
    stages = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    for expansion, outputs, blocks, first in [*stages, (6, 160, 3, 2), (6, 320, 1, 1)]:
        for block in range(blocks):
            stride = 1 if block else first
            inner = channels * expansion
            expanded = conv_norm_relu(channels, inner, 1) if expansion > 1 else []
            body = [*expanded, *depthwise(inner, stride), *layers.conv_norm(inner, outputs, 1)]
            parts.append(Inverted(body, stride == 1 and channels == outputs))
            channels = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, classes)]
    return nn.Sequential(*parts, *conv_norm_relu(channels, 1280, 1), *head)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "resnet50": resnet50,
    "airbench": airbench,
    "mobilenet_v2": mobilenet_v2,
}


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class Trainer:
    """Train one network as fast as PyTorch allows, with data and augmentation on the device.

    Args:
        model: Network, on the CPU.
        batch: Images per step.
        images: Training images, uint8 (N, H, W, C).
        labels: Their classes, (N,).
        channels_last: Use the channels_last memory format for weights and images.
        compiled: Options of ``torch.compile``; None for eager mode.
        half: Compute in bfloat16 (autocast) instead of float32.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        images: np.ndarray,
        labels: np.ndarray,
        channels_last: bool,
        compiled: dict[str, Any] | None,
        *,
        half: bool = True,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        self.batch = batch
        self.dtype = torch.bfloat16 if half else torch.float32
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        model = model.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        kernels = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
        self.optimizer = torch.optim.SGD(
            [{"params": kernels, "weight_decay": 5e-4}, {"params": vectors}],
            lr=0.01,
            momentum=0.9,
            nesterov=True,
            fused=True,
        )

        def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                logits = model(images)
            return F.cross_entropy(logits.float(), labels)

        self.graphs = bool(compiled) and compiled.get("mode") == "reduce-overhead"
        # dynamic=False: a second batch size in one process must not make the dimension dynamic.
        self.loss_of = (
            loss_of if compiled is None else torch.compile(loss_of, dynamic=False, **compiled)
        )
        padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
        self.padded = torch.from_numpy(padded).to(self.device)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        self.order = torch.empty(0, dtype=torch.int64, device=self.device)
        self.chunk = max(1, min(CHUNK, len(labels)) // batch) * batch
        self.images = torch.empty(0)
        self.targets = self.order
        self.place = 0

    def steps(self, count: int) -> float:
        """Train ``count`` steps, and return the seconds until the device has finished them."""
        start = time.perf_counter()
        for _ in range(count):
            if self.place + self.batch > len(self.targets):
                self._augment()
            indices = slice(self.place, self.place + self.batch)
            self.place += self.batch
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            self.loss_of(self.images[indices], self.targets[indices]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _augment(self) -> None:
        """Crop and flip the images of the next steps; the engine does this one step at a time."""
        if len(self.order) < self.chunk:
            self.order = torch.randperm(len(self.labels), device=self.device)
        indices, self.order = self.order[: self.chunk], self.order[self.chunk :]
        size = self.padded.shape[1] - 2 * PADDING
        count, line = len(indices), torch.arange(size, device=self.device)
        shifts = torch.randint(0, 2 * PADDING + 1, (2, count, 1), device=self.device)
        mirrored = torch.rand((count, 1), device=self.device) < 0.5
        rows = line + shifts[0]
        columns = torch.where(mirrored, line.flip(0), line) + shifts[1]
        pixels = self.padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
        images = ((pixels.float() - 127.5) / 63.75).to(self.dtype).permute(0, 3, 1, 2)
        self.images = images.contiguous(memory_format=self.layout)
        self.targets = self.labels[indices]
        self.place = 0
