"""The specification of an encoder: name, weights, licence, input size and normalisation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError

if TYPE_CHECKING:
    from img2gene.encoders.base import Encoder

HUB = "hf-hub:"
TIMM = "timm:"
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class EncoderSpec:
    """Describes an encoder completely, so that its weights need not be loaded to know it.

    Attributes
    ----------
    name
        Registered name; the embedding is stored in ``obsm["X_<name>"]``.
    width
        Features per field of view.
    input_px
        Side of its training images in pixels.
    any_size
        Whether it accepts inputs of other sizes.
    mpp
        Microns per pixel of its training images, or None if it was not trained on histology.
    mean, std
        Normalisation of RGB values in 0–1.
    licence
        Licence of the weights (SPDX identifier where there is one).
    gated
        Whether the weights need an account and an accepted agreement.
    source
        Package or hub repository of the weights. ``"hf-hub:owner/name@<commit>"`` names a repository and a commit; the
        commit then becomes the ``revision``.
    revision
        Version of the weights, for hub repositories a commit of 40 hexadecimal digits. Trained models store it and
        refuse features of another revision.
    build
        Function that loads the encoder, called as ``build(spec, device=…, amp=…, backend=…)``.
    token_width
        Width of the tokens of a :class:`img2gene.encoders.TokenEncoder`. 0 if the encoder gives no tokens.
    last_stage
        Dotted names of the modules that make up the last stage of its torch network.
        ``img2gene.tl.fit(…, finetune="last")`` trains these modules. Empty if the encoder cannot be fine-tuned.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.encoders.get("uni").gated
    True
    """

    name: str
    width: int
    input_px: int
    any_size: bool
    mpp: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    gated: bool
    source: str
    revision: str
    build: Callable[..., Encoder]
    token_width: int = 0
    last_stage: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from img2gene import _schema

        check = Arguments()
        check.text("name", self.name)
        check.raise_all()
        # The name becomes part of a key in `obsm`, which spatialdata has to be able to store.
        _schema.check_name(self.name, "encoder")
        values = self._converted(check)
        if self.name.endswith("_tokens"):
            check.messages.append("the ending `_tokens` names the tokens of another encoder.")
        check.messages = [f"Encoder `{self.name}`: {message}" for message in check.messages]
        check.raise_all()
        for name, value in values.items():
            # The only way to set a field of a frozen dataclass.
            object.__setattr__(self, name, value)

    def _converted(self, check: Arguments) -> dict[str, Any]:
        """Convert and check all fields but the name."""
        source, revision = self.source, self.revision
        if isinstance(source, str) and source.startswith(HUB) and "@" in source:
            with check.collect():
                source, revision = split_hub(source)
        if not callable(self.build):
            check.messages.append(f"build={shown(self.build)}: expected a function that loads the encoder.")
        for name, value in (("source", source), ("revision", revision), ("licence", self.licence)):
            if not isinstance(value, str):
                check.messages.append(f"{name}={shown(value)}: expected a string.")
        stage = check.names("last_stage", self.last_stage, empty=True)
        return {
            "source": source,
            "revision": revision,
            "width": check.whole("width", self.width, 1),
            "input_px": check.whole("input_px", self.input_px, 1),
            "token_width": check.whole("token_width", self.token_width, 0),
            "any_size": check.flag("any_size", self.any_size),
            "gated": check.flag("gated", self.gated),
            "mpp": check.number("mpp", self.mpp, above=0, optional=True),
            "mean": channels(check, "mean", self.mean),
            "std": channels(check, "std", self.std),
            "last_stage": tuple(stage) if isinstance(stage, list) else stage,
        }


def is_commit(revision: str) -> bool:
    """Return whether a revision is a whole commit: branches, tags and short hashes can come to mean other weights."""
    return _COMMIT.fullmatch(revision) is not None


def split_hub(source: str) -> tuple[str, str]:
    """Split ``hf-hub:owner/name@commit`` into source and commit; the commit is empty if none is named."""
    repository, _, commit = source.partition("@")
    if "@" in source and not is_commit(commit):
        raise Img2GeneError(
            f"{shown(source)} names no commit: expected 40 hexadecimal digits after the `@`. The commits are listed on "
            f"https://huggingface.co/{repository.removeprefix(HUB)}/commits/main."
        )
    return repository, commit


def channels(check: Arguments, name: str, values: Any) -> Any:
    """Convert three numbers, one for each channel."""
    is_listed = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    listed = tuple(values) if is_listed else ()
    if len(listed) != 3:
        check.messages.append(f"{name}={shown(values)}: expected three numbers, for red, green and blue.")
        return values
    return tuple(check.number(f"{name}[{place}]", value) for place, value in enumerate(listed))
