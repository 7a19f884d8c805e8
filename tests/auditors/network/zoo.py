"""Small torch modules of the kinds that people export, each with the shape of its input."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.ELU(), nn.Linear(32, 32), nn.Tanh(),
        nn.Linear(32, 10), nn.Softmax(dim=1),
    )  # fmt: skip


def alexnet() -> nn.Module:
    """Local response normalisation, grouped convolution, overlapping pooling."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.ReLU(), nn.LocalResponseNorm(5, k=2.0),
        nn.MaxPool2d(3, 2), nn.Conv2d(16, 24, 5, padding=2, groups=2), nn.ReLU(),
        nn.LocalResponseNorm(5, k=2.0), nn.MaxPool2d(3, 2), nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Dropout(), nn.Linear(144, 48), nn.ReLU(), nn.Dropout(), nn.Linear(48, 10),
    )  # fmt: skip


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if before == after else []
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(16 * 64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


class Residual(nn.Module):
    """Two convolutions around which a shortcut leads, projected where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        plain = before == after and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map."""
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


class Squeeze(nn.Module):
    """Scales channels by a gate that sees the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(),
            nn.Conv2d(4, channels, 1), nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled map."""
        scaled: Tensor = x * self.gate(x)
        return scaled


class Inverted(nn.Module):
    """Expands channels, convolves each alone, projects back."""

    def __init__(self, channels: int, after: int, stride: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.ReLU6(), Squeeze(wide), nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.adds = stride == 1 and channels == after

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
        Inverted(8, 8, 1), Inverted(8, 16, 2), Inverted(16, 16, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 10),
    )  # fmt: skip


class Dense(nn.Module):
    """Every layer sees all maps before it."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * growth), nn.ReLU(),
                nn.Conv2d(channels + i * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Returns all maps, joined."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), Dense(8, 6, 3), nn.BatchNorm2d(26), nn.ReLU(),
        nn.Conv2d(26, 12, 1, bias=False), nn.AvgPool2d(2, 2), Dense(12, 6, 3), nn.BatchNorm2d(30),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(30, 10),
    )  # fmt: skip


class Attention(nn.Module):
    """Self-attention and a perceptron, normalised before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns tokens [n, tokens, width]."""
        n, tokens, width = x.shape
        qkv = self.qkv(self.norms[0](x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, width))
        y: Tensor = x + self.mlp(self.norms[1](x))
        return y


class Vit(nn.Module):
    """Patches, a class token, positions, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, 24))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 17, 24))
        self.blocks = nn.Sequential(Attention(24, 3), Attention(24, 3))
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Returns class scores."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        scores: Tensor = self.head(self.blocks(tokens)[:, 0])
        return scores


class Channels(nn.Module):
    """Layer normalisation over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised map."""
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class ConvNextBlock(nn.Module):
    """A wide depthwise convolution and a perceptron at every pixel, scaled and added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels)
        )
        self.scale = nn.Parameter(0.5 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map."""
        y: Tensor = self.scale * self.mlp(self.norm(self.deep(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 4, 4), Channels(12), ConvNextBlock(12), Channels(12),
        nn.Conv2d(12, 20, 2, 2), ConvNextBlock(20), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LayerNorm(20), nn.Linear(20, 10),
    )  # fmt: skip


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.PReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.Softplus(),
        nn.ConvTranspose2d(12, 8, 3, 2, 1, output_padding=1), nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid(),
    )  # fmt: skip


class Local(nn.Module):
    """Filters without weight sharing: every place of the map has its own."""

    def __init__(self, before: int, after: int, size: int, stride: int, side: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.places = (side - size) // stride + 1
        taps = before * size * size
        weight = torch.randn(self.places**2, taps, after) / math.sqrt(taps)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map [n, after, places, places]."""
        patches = functional.unfold(x, self.size, stride=self.stride)
        y = torch.einsum("ntp,pto->nop", patches, self.weight)
        return y.reshape(x.shape[0], -1, self.places, self.places)


class Contrast(nn.Module):
    """Local contrast normalisation: minus the mean around, over the deviation around."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised map."""
        blur = torch.ones(1, 1, 5, 5, device=x.device) / 25
        centred = x - functional.conv2d(x.mean(1, keepdim=True), blur, padding=2)
        energy = functional.conv2d(centred.square().mean(1, keepdim=True), blur, padding=2)
        return centred / torch.clamp(torch.sqrt(energy + 1e-6), min=0.1)


class L2Pool(nn.Module):
    """Square root of the sum of squares in each window."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the pooled map."""
        return torch.sqrt(9 * functional.avg_pool2d(x.square(), 3, 2) + 1e-6)


def quocnet() -> nn.Module:
    """Locally connected filters, L2 pooling and local contrast normalisation, twice."""
    return nn.Sequential(
        Local(3, 6, 6, 2, 32), L2Pool(), Contrast(), Local(6, 8, 3, 1, 6), L2Pool(), nn.Flatten(),
        nn.Linear(8, 10),
    )  # fmt: skip


ZOO: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "mlp": (mlp, (8, 8)),
    "alexnet": (alexnet, (3, 32, 32)),
    "vgg": (vgg, (3, 32, 32)),
    "resnet": (resnet, (3, 32, 32)),
    "mobilenet": (mobilenet, (3, 32, 32)),
    "densenet": (densenet, (3, 16, 16)),
    "vit": (Vit, (3, 32, 32)),
    "convnext": (convnext, (3, 32, 32)),
    "autoencoder": (autoencoder, (3, 16, 16)),
    "quocnet": (quocnet, (3, 32, 32)),
}
"""Modules by name, each with the shape of one sample."""


def make(name: str, seed: int = 0) -> nn.Module:
    """Returns a module with random weights and plausible statistics, in inference mode."""
    torch.manual_seed(seed)
    module = ZOO[name][0]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr] # set with the mean
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
    return module.eval().requires_grad_(requires_grad=False)


def classify(module: nn.Module, x: Tensor) -> Tensor:
    """Returns a module's output as one row per sample."""
    y: Tensor = module(x)
    return y.flatten(1)
