"""Encoders of timm, whose weights come from the Hugging Face hub: downloaded on first use, gated ones after login."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from img2gene._errors import Img2GeneError
from img2gene._files.hub import is_refusal
from img2gene.encoders.base import TorchEncoder
from img2gene.encoders.spec import HUB, EncoderSpec, is_commit
from img2gene.encoders.tokens import pool_tokens

if TYPE_CHECKING:
    from img2gene.encoders.base import Encoder

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# As in the models' own instructions on the hub; without `init_values` their layer scales would not be created.
_OPTIONS: dict[str, dict[str, Any]] = {
    "hf-hub:MahmoodLab/UNI": {"init_values": 1e-5, "dynamic_img_size": True},
    "hf-hub:bioptimus/H-optimus-0": {"init_values": 1e-5, "dynamic_img_size": False},
}
# Older releases read a pickled file of the hub as Python objects, which can run code: before 1.0.9 always, before 1.0.26
# where the repository itself names the file.
_OLDEST_TIMM = (1, 0, 26)


class TimmNetwork(nn.Module):
    """Adds tokens to a timm model without classifier, whether transformer or convolutional network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute pooled features, (n, width)."""
        return self.network(x)

    def with_tokens(self, x: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute pooled features, and unpooled features averaged over each cell of a grid, (n, grid², width)."""
        unpooled = self.network.forward_features(x)
        return self.network.forward_head(unpooled), pool_tokens([self._feature_map(unpooled)], grid)

    def _feature_map(self, unpooled: torch.Tensor) -> torch.Tensor:
        """Arrange unpooled features as a map (n, width, h, h)."""
        if unpooled.ndim == 4:
            return unpooled
        # A transformer's features lie in one row, after its class token and its registers.
        patches = unpooled[:, self.network.num_prefix_tokens :].transpose(1, 2)
        return patches.unflatten(2, (math.isqrt(patches.shape[2]),) * 2)


def build(
    spec: EncoderSpec, *, device: str | None, amp: bool | str | None, backend: str, pretrained: bool = True
) -> Encoder:
    """Create the timm model without its classifier, and load the weights of the spec's commit if ``pretrained``."""
    if pretrained and not is_commit(spec.revision):
        raise Img2GeneError(
            f"Encoder `{spec.name}` names the revision {spec.revision!r} of {spec.source}, which can come to mean other "
            "weights. Name a commit of 40 hexadecimal digits as `revision`; the commits are listed on "
            f"https://huggingface.co/{spec.source.removeprefix(HUB)}/commits/main."
        )
    if backend == "onnx":
        raise Img2GeneError(f'Encoder `{spec.name}` runs in torch; pass `backend="torch"`.')
    timm = import_timm(spec, pretrained=pretrained)
    try:
        network = timm.create_model(
            f"{spec.source}@{spec.revision}" if pretrained else spec.source.split("/")[-1].split(".")[0],
            pretrained=pretrained,
            num_classes=0,
            **_OPTIONS.get(spec.source, {}),
        )
    except Exception as error:
        # The hub's client, safetensors and torch have no error in common.
        raise load_failure(spec, error) from error
    return TorchEncoder(TimmNetwork(network), spec.width, spec.mean, spec.std, device=device, amp=amp, name=spec.name)


def import_timm(spec: EncoderSpec, *, pretrained: bool = True) -> Any:
    """Import timm; refuse one that could run code of a weights file."""
    try:
        import timm
    except ImportError as error:
        raise Img2GeneError(f'Encoder `{spec.name}` needs timm: `pip install "img2gene[timm]"` ({error}).') from error
    except RuntimeError as error:
        raise Img2GeneError(
            f"Encoder `{spec.name}` needs timm, which cannot be imported: {error}. If this names torchvision, its build does "
            "not match torch: install the matching one from the index that torch came from, such as "
            "`pip install --force-reinstall torchvision --index-url https://download.pytorch.org/whl/cpu`."
        ) from error
    if pretrained:
        _check_release(spec, getattr(timm, "__version__", ""))
    return timm


def load_failure(spec: EncoderSpec, error: Exception) -> Img2GeneError:
    """Say that weights could not be loaded, and for gated ones where to accept their terms and how to log in."""
    page = f"https://huggingface.co/{spec.source.removeprefix(HUB)}"
    if is_refusal(error):
        return Img2GeneError(
            f"The weights of `{spec.name}` are gated: accept their terms ({spec.licence}) on {page}, then run `hf auth login`."
        )
    login = f" It is gated: accept its terms on {page} and run `hf auth login`." if spec.gated else ""
    return Img2GeneError(
        f"The weights of `{spec.name}` ({spec.source}, commit {spec.revision}) could not be loaded: {error}.{login}"
    )


def _check_release(spec: EncoderSpec, release: str) -> None:
    numbers = tuple(map(int, re.findall(r"\d+", release)[:3]))
    if numbers and numbers < _OLDEST_TIMM:
        oldest = ".".join(map(str, _OLDEST_TIMM))
        raise Img2GeneError(
            f"timm {release} can run code that a weights file of `{spec.name}` contains; install timm {oldest} or newer: "
            f'`pip install --upgrade "timm>={oldest}"`.'
        )


def _last_block(n_blocks: int) -> tuple[str, ...]:
    """Name the last block of a transformer and the normalisation after it."""
    return f"network.blocks.{n_blocks - 1}", "network.norm"


def _spec(name: str, width: int, source: str, revision: str, licence: str, **changes: Any) -> EncoderSpec:
    values: dict[str, Any] = {
        "input_px": 224,
        "any_size": False,
        "mpp": 0.5,
        "mean": _IMAGENET[0],
        "std": _IMAGENET[1],
        "gated": True,
        "build": build,
        "token_width": width,
    }
    return EncoderSpec(
        name=name, width=width, source=source, revision=revision, licence=licence, **{**values, **changes}
    )


SPECS = (
    _spec(
        "resnet50",
        2048,
        "hf-hub:timm/resnet50.a1_in1k",
        "767268603ca0cb0bfe326fa87277f19c419566ef",
        "Apache-2.0",
        any_size=True,
        mpp=None,
        gated=False,
        last_stage=("network.layer4",),
    ),
    _spec(
        "uni",
        1024,
        "hf-hub:MahmoodLab/UNI",
        "b55a5ec6cade1a39edfe6534189a9b8ca7a022f0",
        "CC-BY-NC-ND-4.0",
        any_size=True,
        last_stage=_last_block(24),
    ),
    _spec(
        "h-optimus-0",
        1536,
        "hf-hub:bioptimus/H-optimus-0",
        "b145cc1e6c6b30d3251aa8b1f844e6974188a743",
        "Apache-2.0",
        mean=(0.707223, 0.578729, 0.703617),
        std=(0.211883, 0.230117, 0.177517),
        last_stage=_last_block(40),
    ),
)
