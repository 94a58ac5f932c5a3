"""Describe timm models of the hub that no entry describes, by the configuration in their repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene.encoders.spec import HUB, EncoderSpec
from img2gene.encoders.timm_hub import build

_SIDE = 224


def known_side(known: dict[str, Any]) -> int:
    """Side in pixels of the images that timm has recorded; 224 if it has none."""
    size = known.get("input_size") or (3, _SIDE, _SIDE)
    return int(size[-1])


def of_repository(source: str, commit: str) -> EncoderSpec:
    """Describe a timm model of the hub by the configuration in its repository; today's commit where none is named."""
    repository = source.removeprefix(HUB)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingKeyError(f'this needs huggingface-hub: `pip install "img2gene[timm]"` ({error}).') from error
    try:
        # The path in the client's cache names the commit, also without a connection.
        path = Path(hf_hub_download(repository, "config.json", revision=commit or "main"))
        config = json.loads(path.read_text())
    except Exception as error:
        # The hub's client has many errors, and a configuration can be damaged.
        raise MissingKeyError(f"{type(error).__name__}: {str(error)[:300]}.") from error
    return _described(source, commit or path.parent.name, config)


def _described(source: str, commit: str, config: dict[str, Any]) -> EncoderSpec:
    known = {**config, **(config.get("pretrained_cfg") or {})}
    absent = [name for name in ("architecture", "num_features", "mean", "std") if not known.get(name)]
    if absent:
        raise Img2GeneError(
            f"The repository {source} does not state {', '.join(absent)}, which an encoder of timm needs. Load it yourself, and pass "
            "it with its statistics: `img2gene.encoders.wrap(network, name, mean=…, std=…)`."
        )
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", source.rpartition("/")[2])
    return EncoderSpec(
        name=f"{name}-{commit}",
        width=int(known["num_features"]),
        input_px=known_side(known),
        any_size=False,
        mpp=None,
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
        licence=str(known.get("license", "not stated")),
        gated=False,
        source=source,
        revision=commit,
        build=build,
    )
