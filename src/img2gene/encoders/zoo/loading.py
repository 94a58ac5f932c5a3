"""Load encoders of the hub: create the network, download the weights of one commit, and put them in, all or none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2gene._errors import Img2GeneError, listing
from img2gene.encoders.base import TorchEncoder
from img2gene.encoders.spec import HUB, EncoderSpec, is_commit
from img2gene.encoders.timm_hub import import_timm, load_failure

if TYPE_CHECKING:
    from torch import nn

    from img2gene.encoders.base import Encoder

logger = logging.getLogger(__name__)

# The revision of entries whose commit is not known here: that of today is looked up, recorded, and kept to.
UNPINNED = "unpinned"


@dataclass(frozen=True)
class Recipe:
    """How the network of an encoder is made.

    Attributes
    ----------
    kind
        Which function below makes it.
    pooling
        As in :class:`img2gene.encoders.zoo.networks.HubNetwork`.
    architecture
        Name in timm, or class of transformers, where the repository does not name it.
    options
        Arguments of the architecture. Layers are named: ``{"mlp_layer": "SwiGLUPacked"}``.
    file
        File of the weights, where it is not one that timm or transformers look for.
    """

    kind: str
    pooling: str = "pooled"
    architecture: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""

    def __call__(self, spec: EncoderSpec, *, device: str | None, amp: bool | str | None, backend: str) -> Encoder:
        """Load the encoder of a specification; this is its ``build`` function."""
        if not is_commit(spec.revision):
            raise Img2GeneError(
                f"Encoder `{spec.name}` names the revision {spec.revision!r} of {spec.source}, which can come to mean other "
                f"weights: name a commit, `{spec.source}@<commit>`, see https://huggingface.co/{spec.source.removeprefix(HUB)}."
            )
        if backend == "onnx":
            raise Img2GeneError(f'Encoder `{spec.name}` runs in torch; pass `backend="torch"`.')
        make = _MAKERS[self.kind]
        if self.kind != "transformers":
            import_timm(spec)
        try:
            network = make(spec, self)
        except Img2GeneError:
            raise
        except Exception as error:
            # The hub's client, safetensors, torch and transformers have no error in common.
            raise load_failure(spec, error) from error
        return TorchEncoder(network, spec.width, spec.mean, spec.std, device=device, amp=amp, name=spec.name)


def resolved(spec: EncoderSpec) -> EncoderSpec:
    """Look up today's commit of an encoder that is not pinned; the others are returned as they are."""
    if spec.revision != UNPINNED:
        return spec
    try:
        # The path in the client's cache names the commit, also without a connection.
        commit = _download(spec, getattr(spec.build, "file", "") or "config.json", revision="main").parent.name
    except Img2GeneError:
        raise
    except Exception as error:
        raise load_failure(spec, error) from error
    logger.warning(
        "no commit of `%s` is known to this package; its weights are those of commit %s of %s. Pass %r to keep to them",
        *(spec.name, commit, spec.source.removeprefix(HUB), f"{spec.source}@{commit}"),
    )
    return replace(spec, revision=commit)


def _download(spec: EncoderSpec, file: str, revision: str | None = None) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise Img2GeneError(
            f'Encoder `{spec.name}` needs huggingface-hub: `pip install "img2gene[zoo]"` ({error}).'
        ) from error
    return Path(hf_hub_download(spec.source.removeprefix(HUB), file, revision=revision or spec.revision))


def _timm_hub(spec: EncoderSpec, recipe: Recipe) -> nn.Module:
    """Create a timm model as its repository describes it."""
    import timm

    from img2gene.encoders.zoo.networks import HubNetwork, SwinNetwork

    source = f"{spec.source}@{spec.revision}"
    network = timm.create_model(source, pretrained=True, num_classes=0, **_layers(recipe.options))
    if recipe.kind == "swin":
        return SwinNetwork(network)
    return HubNetwork(network, recipe.pooling, network.num_prefix_tokens)


def _timm_file(spec: EncoderSpec, recipe: Recipe) -> nn.Module:
    """Create a timm model whose repository holds a file of weights alone."""
    import timm

    from img2gene.encoders.zoo.networks import HubNetwork

    network = timm.create_model(recipe.architecture, pretrained=False, num_classes=0, **_layers(recipe.options))
    network.load_state_dict(_weights(spec, recipe))
    return HubNetwork(network, recipe.pooling, network.num_prefix_tokens)


def _conch(spec: EncoderSpec, recipe: Recipe) -> nn.Module:
    """Create the image part of CONCH; the weights of its text part, and of its captions, are left out."""
    import timm

    from img2gene.encoders.zoo.networks import ConchNetwork

    trunk = timm.create_model(recipe.architecture, pretrained=False, num_classes=0, **_layers(recipe.options))
    network = ConchNetwork(trunk, spec.width)
    names = {"trunk": "network", "attn_pool_contrast": "attn_pool_contrast", "ln_contrast": "ln_contrast"}
    stored = {}
    for name, value in _weights(spec, recipe).items():
        tower, _, rest = name.partition(".")
        part, _, rest = rest.partition(".")
        if tower == "visual" and part in names and rest:
            stored[f"{names[part]}.{rest}"] = value
    network.load_state_dict(stored)
    return network


def _transformers(spec: EncoderSpec, recipe: Recipe) -> nn.Module:
    """Create a model of transformers from its own code, never from code of the repository."""
    try:
        import transformers
    except ImportError as error:
        raise Img2GeneError(
            f'Encoder `{spec.name}` needs transformers: `pip install "img2gene[zoo]"` ({error}).'
        ) from error
    from img2gene.encoders.zoo.networks import TransformersNetwork

    network, report = getattr(transformers, recipe.architecture).from_pretrained(
        spec.source.removeprefix(HUB),
        revision=spec.revision,
        # A pickled file can run code.
        use_safetensors=True,
        output_loading_info=True,
        **recipe.options,
    )
    absent = [*report["missing_keys"], *report["mismatched_keys"]]
    if absent or report["unexpected_keys"]:
        raise Img2GeneError(
            f"The weights of `{spec.name}` do not fit {recipe.architecture} of transformers: {listing(absent, 3)} are missing, "
            f"{listing(report['unexpected_keys'], 3)} are left over."
        )
    registers = getattr(network.config, "num_register_tokens", 0)
    return TransformersNetwork(network, recipe.pooling, 1 + registers)


_MAKERS: dict[str, Callable[[EncoderSpec, Recipe], nn.Module]] = {
    "timm": _timm_hub,
    "swin": _timm_hub,
    "timm-file": _timm_file,
    "conch": _conch,
    "transformers": _transformers,
}


def _weights(spec: EncoderSpec, recipe: Recipe) -> dict[str, Any]:
    """Read a file of tensors; `weights_only` refuses anything that could run code."""
    import torch

    return torch.load(_download(spec, recipe.file), map_location="cpu", weights_only=True)


def _layers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace names of layers by the layers."""
    import torch
    from timm import layers

    from img2gene.encoders.zoo.networks import ConvStem

    known = {"SwiGLUPacked": layers.SwiGLUPacked, "SiLU": torch.nn.SiLU, "ConvStem": ConvStem}
    return {name: known.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
