"""Encoders whose network can be trained: a copy to train, and one with weights that training changed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from img2gene._errors import Img2GeneError, listing, raise_problems

if TYPE_CHECKING:
    import torch

    from img2gene.encoders.base import TorchEncoder
    from img2gene.encoders.spec import EncoderSpec


def load_trainable(spec: EncoderSpec, *, device: str | None = None, amp: bool | str | None = None) -> TorchEncoder:
    """A copy of the encoder in torch, which nobody else holds; raises for encoders that cannot be fine-tuned."""
    from img2gene import encoders
    from img2gene.encoders.base import TorchEncoder

    check_trainable(spec)
    encoder = encoders.load(spec.name, device=device, amp=amp, backend="torch")
    if not isinstance(encoder, TorchEncoder):
        raise Img2GeneError(
            f'Encoder `{spec.name}` declares a last stage, but `backend="torch"` builds a {type(encoder).__name__}, not a '
            "TorchEncoder."
        )
    return copy.deepcopy(encoder)


def check_trainable(spec: EncoderSpec) -> None:
    """Raise for an encoder that cannot be fine-tuned, listing those that can."""
    from img2gene import encoders

    if not spec.last_stage:
        known = encoders.list()
        usable = listing(known.index[known["last_stage"].map(bool)])
        raise Img2GeneError(f"Encoder `{spec.name}` cannot be fine-tuned (available: {usable}).")


def load_adapted(
    spec: EncoderSpec, weights: dict[str, np.ndarray], *, device: str | None = None, amp: bool | str | None = None
) -> TorchEncoder:
    """The encoder with changed weights; those that do not fit its network are named."""
    encoder = load_trainable(spec, device=device, amp=amp)
    set_weights(encoder.network, weights, spec.name)
    return encoder


def set_weights(network: torch.nn.Module, weights: dict[str, np.ndarray], name: str) -> None:
    """Replace parameters of a network by arrays of their names."""
    import torch

    own = dict(network.named_parameters())
    problems = [f"Encoder `{name}` has no weight `{key}`." for key in weights if key not in own]
    problems += [
        f"Weight `{key}` of encoder `{name}` has shape {tuple(own[key].shape)}, the model's has {value.shape}."
        for key, value in weights.items()
        if key in own and tuple(own[key].shape) != value.shape
    ]
    raise_problems(problems)
    with torch.no_grad():
        for key, value in weights.items():
            own[key].copy_(torch.from_numpy(np.ascontiguousarray(value)))


def select_stage(network: torch.nn.Module, spec: EncoderSpec, *, last: bool) -> list[str]:
    """Let gradients through the last stage only, or through everything; names of the parameters that are trained."""
    trained = []
    for name, value in network.named_parameters():
        inside = any(name == stage or name.startswith(f"{stage}.") for stage in spec.last_stage)
        value.requires_grad_(inside or not last)
        if value.requires_grad:
            trained.append(name)
    if not trained:
        raise Img2GeneError(
            f"Encoder `{spec.name}`: its last stage {listing(spec.last_stage)} names no weights of its network."
        )
    return trained


def changed_weights(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Parameters that are not what they were, as float32 arrays."""
    import torch

    return {
        name: value.detach().float().cpu().numpy().copy()
        for name, value in network.named_parameters()
        if name in before and not torch.equal(value.detach().cpu(), before[name].cpu())
    }
