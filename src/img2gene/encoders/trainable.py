"""Copy encoders for training, choose which weights are trained, and restore trained weights."""

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
    """Load a copy of the encoder in torch that can be trained; raise if the encoder cannot be fine-tuned."""
    from img2gene.encoders.base import TorchEncoder
    from img2gene.encoders.registry import build

    check_trainable(spec)
    encoder = build(spec, device=device, amp=amp, backend="torch")
    if not isinstance(encoder, TorchEncoder):
        raise Img2GeneError(
            f'Encoder `{spec.name}` declares a last stage, but with `backend="torch"` it is a '
            f"{type(encoder).__name__}, not an `img2gene.encoders.base.TorchEncoder`."
        )
    # A package may return the same object at each call, and training must not change that object.
    encoder = copy.deepcopy(encoder)
    encoder.name = spec.name
    return encoder


def check_trainable(spec: EncoderSpec) -> None:
    """Raise if the encoder cannot be fine-tuned; the message lists the encoders that can."""
    from img2gene import encoders

    if not spec.last_stage:
        known = encoders.list()
        usable = listing(known.index[known["last_stage"].map(bool)])
        raise Img2GeneError(f"Encoder `{spec.name}` cannot be fine-tuned (available: {usable}).")


def load_adapted(
    spec: EncoderSpec, weights: dict[str, np.ndarray], *, device: str | None = None, amp: bool | str | None = None
) -> TorchEncoder:
    """Load the encoder and replace some of its weights; raise if a weight does not fit its network."""
    encoder = load_trainable(spec, device=device, amp=amp)
    set_weights(encoder.network, weights, spec.name)
    return encoder


def set_weights(network: torch.nn.Module, weights: dict[str, np.ndarray], name: str) -> None:
    """Replace parameters of a network by the arrays in ``weights``, which are keyed by parameter name."""
    import torch

    parameters = dict(network.named_parameters())
    problems = [f"Encoder `{name}` has no weight `{key}`." for key in weights if key not in parameters]
    problems += [
        f"Weight `{key}` of encoder `{name}` has shape {tuple(parameters[key].shape)}; the trained model has "
        f"{value.shape}."
        for key, value in weights.items()
        if key in parameters and tuple(parameters[key].shape) != value.shape
    ]
    problems += [
        f"Weight `{key}` of encoder `{name}` is not numeric, or has NaN or infinite values."
        for key, value in weights.items()
        if value.dtype.kind != "f" or not np.isfinite(value).all()
    ]
    raise_problems(problems)
    with torch.no_grad():
        for key, value in weights.items():
            parameters[key].copy_(torch.from_numpy(np.ascontiguousarray(value)))


def select_stage(network: torch.nn.Module, spec: EncoderSpec, *, last: bool) -> list[str]:
    """Train the last stage only, or the whole network; return the names of the trained parameters."""
    trained = []
    for name, value in network.named_parameters():
        inside = any(name == stage or name.startswith(f"{stage}.") for stage in spec.last_stage)
        value.requires_grad_(inside or not last)
        if value.requires_grad:
            trained.append(name)
    if not trained:
        raise Img2GeneError(
            f"Encoder `{spec.name}`: the modules of its last stage ({listing(spec.last_stage)}) hold no weights."
        )
    return trained


def changed_weights(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the parameters that differ from ``before``, as float32 arrays."""
    import torch

    # Only these are stored with a model: an encoder without its last stage can have gigabytes.
    return {
        name: value.detach().float().cpu().numpy().copy()
        for name, value in network.named_parameters()
        if name in before and not torch.equal(value.detach().cpu(), before[name].cpu())
    }
