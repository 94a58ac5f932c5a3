"""Fine-tune an encoder within a study: read the pixels of training spots, and embed them with the adapted encoder."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import encoders
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._study.embedding import embedding_identity, encode, progress, stream_embedding
from img2gene._study.inputs import Inputs
from img2gene._study.patches import Reading, stream_patches
from img2gene._study.study import Study
from img2gene.models.data import TrainingData
from img2gene.settings import settings

if TYPE_CHECKING:
    from img2gene.encoders.base import TorchEncoder
    from img2gene.models.networks.finetuning import FineTuningParameters

_MEMORY_BYTES = 4 * 2**30
_ORIENTATIONS = 2


@dataclass(frozen=True)
class StudyFineTuning:
    """Fine-tuning of an encoder on the training spots of a study."""

    study: Study
    identity: dict[str, Any]
    options: FineTuningParameters

    def run(
        self,
        values: np.ndarray,
        sections: np.ndarray,
        groups: np.ndarray,
        places: np.ndarray,
        rows: np.ndarray,
        *,
        seed: int,
    ) -> Inputs:
        """Train the encoder on ``rows``, with their labels, sections, groups and positions, and embed them again."""
        from img2gene.encoders.base import resolve_amp, resolve_device
        from img2gene.encoders.trainable import load_trainable
        from img2gene.models.networks.finetuning import FineTuning

        device = resolve_device(None)
        encoder = load_trainable(encoders.get(self.identity["name"]), device=device)
        with tempfile.TemporaryFile() as file:
            pixels, features = self._read(encoder, rows, file)
            adapted = FineTuning(
                encoder,
                encoders.get(self.identity["name"]),
                pixels,
                TrainingData(features, values, sections, groups, places),
                self.options,
                seed,
                device,
                "bf16-mixed" if resolve_amp(None, device) else "32-true",
            ).run()
        identity = self.identity | {
            "finetuned": {
                "mode": self.options.mode,
                "epochs": adapted.report["epochs"],
                "learning_rate": self.options.learning_rate,
            }
        }
        features, tokens = embed(self.study, encoder, identity, rows)
        return Inputs(identity, features, tokens, adapted.weights, adapted.report)

    def _read(self, encoder: TorchEncoder, rows: np.ndarray, file: Any) -> tuple[np.ndarray, np.ndarray]:
        """Read pixels, uint8 (n, n_fields, 3, side, side), and compute the features before fine-tuning."""
        from img2gene.encoders.base import resize

        side, n_fields = self.identity["input_px"], len(self.identity["patch_um"])
        shape = (len(rows), n_fields, 3, side, side)
        # Every epoch reads all pixels in a new order, so they are decoded once, into a file if memory is too small.
        large = np.prod(shape, dtype=np.int64) > _MEMORY_BYTES
        pixels: np.ndarray = np.memmap(file, np.uint8, "w+", shape=shape) if large else np.empty(shape, dtype=np.uint8)
        features = np.empty((len(rows), self.identity["width"]), dtype=np.float32)
        order = np.argsort(rows)
        batches = stream_patches(self.study, settings.batch_size, settings.num_workers, rows, Reading(side))
        for batch_rows, windows in progress(batches, len(rows), "read patches"):
            # Batches come in the order of image chunks, not in the order of `rows`.
            index = order[np.searchsorted(rows, batch_rows, sorter=order)]
            for number, field_ in enumerate(windows.fields):
                pixels[index, number] = resize(field_, side).numpy()
            features[index] = encode(encoder, windows.fields, side, self.identity["orientations"])[0]
        return pixels, features


def embed(
    study: Study, encoder: TorchEncoder, identity: dict[str, Any], rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embed all rows, or ``rows`` only, with an adapted encoder; return features and tokens."""
    # In training mode, dropout would make embeddings random.
    encoder.network.eval()
    return stream_embedding(study, encoder, identity, settings.batch_size, settings.num_workers, rows)


def embed_adapted(study: Study, identity: dict[str, Any], weights: dict[str, np.ndarray]) -> Inputs:
    """Embed all rows with the encoder whose weights fine-tuning changed."""
    from img2gene.encoders.trainable import load_adapted

    encoder = load_adapted(encoders.get(identity["name"]), weights)
    return Inputs(identity, *embed(study, encoder, identity), weights)


def identity_for(study: Study, encoder: str | None, *, tokens: bool) -> dict[str, Any]:
    """Return the embedding identity for the named encoder, else for the only one stored, else for the default.

    Orientations, and the number of tokens if the model uses them, come from a stored embedding by this encoder if there
    is one.
    """
    patches, known = study.patches, study.record("encoder", {})
    if encoder is None and len(known) > 1:
        raise Img2GeneError(f"Several embeddings are stored ({listing(known)}); say which encoder with `encoder=`.")
    spec = encoders.get(encoder or next(iter(known), "default"))
    stored = known.get(spec.name, {})
    return embedding_identity(
        spec, patches, stored.get("orientations", _ORIENTATIONS), stored.get("tokens") if tokens else None
    )


def current_identity(study: Study, trained: dict[str, Any]) -> dict[str, Any]:
    """Return the identity that the patches of this study give with the settings of a fine-tuned model, ``trained``."""
    spec = encoders.get(trained["name"])
    return embedding_identity(spec, study.patches, trained["orientations"], trained.get("tokens"))


def check_images(study: Study) -> None:
    """Raise if an image that the patches refer to is no longer in the study."""
    recorded, images = study.patches["regions"], study.sdata.images
    for name in (recorded[region]["image"] for region in study.regions):
        if name not in images:
            raise MissingKeyError(
                missing(
                    name,
                    "sdata.images",
                    images,
                    "Fine-tuned encoders read the patches' pixels: put the image back, or run "
                    "`img2gene.pp.extract_patches` again.",
                )
            )
