"""The pathology encoders of the zoo: one entry each. Numbers are those of the publishers' own instructions."""

# The publishers' page of an entry is https://huggingface.co/ with its `source`. On 29 November 2026, widths, sides and
# normalisations were compared with two independent sources, and agree: the loaders of TRIDENT,
# https://github.com/mahmoodlab/TRIDENT/blob/a91fa8490e0210ebbbe58452c3babe009e0ab7ca/trident/patch_encoder_models/load.py
# (h0-mini and midnight: with `return_type="cls+mean"`; without hibou-b), and lazyslide-models 0.1.0 of PyPI, which also
# states the licences (but for hibou-b and hibou-l). `mpp` is that of 20×, for which TRIDENT gives all but ctranspath, 10×
# (that of CHIEF). Commits that no public text names stay unpinned: the one of the first load is recorded.

from __future__ import annotations

from typing import Any

from img2gene.encoders.spec import HUB, EncoderSpec
from img2gene.encoders.zoo.loading import UNPINNED, Recipe
from img2gene.encoders.zoo.networks import CLASS, CLASS_AND_MEAN

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_NO_DERIVATIVES = "CC-BY-NC-ND-4.0"


def _entry(
    name: str,
    source: str,
    recipe: Recipe,
    *,
    width: int,
    licence: str,
    gated: bool,
    revision: str = UNPINNED,
    token_width: int | None = None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET,
    **changes: Any,
) -> EncoderSpec:
    values: dict[str, Any] = {"input_px": 224, "any_size": False, "mpp": 0.5, **changes}
    return EncoderSpec(
        name=name,
        width=width,
        mean=statistics[0],  # type: ignore[arg-type]
        std=statistics[1],  # type: ignore[arg-type]
        licence=licence,
        gated=gated,
        source=HUB + source,
        revision=revision,
        build=recipe,
        token_width=width if token_width is None else token_width,
        **values,
    )


SPECS = (
    _entry(
        "uni2-h",
        "MahmoodLab/UNI2-h",
        Recipe(
            "timm",
            options={
                "img_size": 224,
                "patch_size": 14,
                "depth": 24,
                "num_heads": 24,
                "init_values": 1e-5,
                "embed_dim": 1536,
                "mlp_ratio": 2.66667 * 2,
                "no_embed_class": True,
                "reg_tokens": 8,
                "dynamic_img_size": True,
                **_SWIGLU,
            },
        ),
        width=1536,
        licence=_NO_DERIVATIVES,
        gated=True,
        revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
    ),
    _entry(
        "conch",
        "MahmoodLab/CONCH",
        Recipe(
            "conch",
            architecture="vit_base_patch16_224",
            options={"img_size": 448, "global_pool": ""},
            file="pytorch_model.bin",
        ),
        width=512,
        token_width=768,
        licence=_NO_DERIVATIVES,
        gated=True,
        input_px=448,
        statistics=_CLIP,
        revision="f9ca9f877171a28ade80228fb195ac5d79003357",
    ),
    _entry(
        "virchow",
        "paige-ai/Virchow",
        Recipe("timm", CLASS_AND_MEAN, options=_SWIGLU),
        width=2560,
        token_width=1280,
        licence="Apache-2.0",
        gated=True,
        revision="19eebc84ae33e79f1b2d866e6ff90ae50e522f9a",
    ),
    _entry(
        "virchow2",
        "paige-ai/Virchow2",
        Recipe("timm", CLASS_AND_MEAN, options=_SWIGLU),
        width=2560,
        token_width=1280,
        licence=_NO_DERIVATIVES,
        gated=True,
        revision="3158645804b69e3f3bc4439d4116edddf0840a72",
    ),
    _entry(
        "h-optimus-1",
        "bioptimus/H-optimus-1",
        Recipe("timm", options={"init_values": 1e-5, "dynamic_img_size": False}),
        width=1536,
        licence=_NO_DERIVATIVES,
        gated=True,
        statistics=_OPTIMUS,
        revision="3592cb220dec7a150c5d7813fb56e68bd57473b9",
    ),
    _entry(
        "h0-mini",
        "bioptimus/H0-mini",
        Recipe("timm", CLASS_AND_MEAN, options=_SWIGLU),
        width=1536,
        token_width=768,
        licence=_NO_DERIVATIVES,
        gated=True,
        statistics=_OPTIMUS,
    ),
    _entry(
        "prov-gigapath",
        "prov-gigapath/prov-gigapath",
        Recipe("timm"),
        width=1536,
        licence="Apache-2.0 with conditions",
        gated=True,
        revision="eba85dd46097c3eedfcc2a3a9a930baecb6bcc19",
    ),
    _entry(
        "phikon",
        "owkin/phikon",
        Recipe("transformers", CLASS, "ViTModel", {"add_pooling_layer": False}),
        width=768,
        licence="Owkin non-commercial",
        gated=False,
    ),
    _entry(
        "phikon-v2",
        "owkin/phikon-v2",
        Recipe("transformers", CLASS, "Dinov2Model"),
        width=1024,
        licence="Owkin non-commercial",
        gated=False,
    ),
    _entry(
        "ctranspath",
        "1aurent/swin_tiny_patch4_window7_224.CTransPath",
        Recipe("swin", options={"embed_layer": "ConvStem"}),
        width=768,
        token_width=0,
        licence="GPL-3.0",
        gated=False,
    ),
    _entry(
        "hibou-b",
        "histai/hibou-b",
        Recipe("transformers", CLASS, "Dinov2WithRegistersModel"),
        width=768,
        licence="Apache-2.0",
        gated=True,
        statistics=_HIBOU,
    ),
    _entry(
        "hibou-l",
        "histai/hibou-L",
        Recipe("transformers", CLASS, "Dinov2WithRegistersModel"),
        width=1024,
        licence="Apache-2.0",
        gated=True,
        statistics=_HIBOU,
    ),
    _entry(
        "midnight",
        "kaiko-ai/midnight",
        Recipe("transformers", CLASS_AND_MEAN, "Dinov2Model"),
        width=3072,
        token_width=1536,
        licence="MIT",
        gated=True,
        statistics=_HALF,
    ),
    _entry(
        "gpfm",
        "majiabo/GPFM",
        Recipe(
            "timm-file",
            architecture="vit_large_patch14_dinov2",
            options={"img_size": 224, "init_values": 1e-5},
            file="GPFM.pth",
        ),
        width=1024,
        licence=_NO_DERIVATIVES,
        gated=False,
    ),
)
