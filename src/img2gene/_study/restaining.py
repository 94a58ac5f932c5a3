"""How an encoder's features change with the stain, on a few patches of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene._study.embedding import Embedder, embedding_cache, progress_bar
from img2gene._study.expression import in_tissue
from img2gene._study.inputs import without_tokens
from img2gene._study.origins import check_embedding
from img2gene._study.patches import Reading, stream_patches
from img2gene._study.study import Study
from img2gene.encoders.restain import FACTOR, STAINS, reduced, restained

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from img2gene.encoders import Encoder

# Spots of each section that are restained at least, so that every split of the study has some.
_PER_SECTION = 2
_N_COPIES = len(STAINS)


def restained_rows(study: Study, n: int, seed: int) -> np.ndarray:
    """Draw about ``n`` spots evenly from all sections, whatever the order of the rows."""
    rng = np.random.default_rng(seed)
    names, tissue = sorted(study.section_names()), in_tissue(study.table)
    each = max(-(-n // max(len(names), 1)), _PER_SECTION)
    drawn = []
    for name in names:
        rows = study.ordered(study.section_rows(name))
        rows = rows[tissue[rows]]
        drawn.append(rng.permutation(rows)[:each])
    return np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)


def stain_changes(
    study: Study, model: Encoder, identity: dict[str, Any], batch_size: int, num_workers: int, n: int, seed: int
) -> csr_matrix:
    """Change of the features under restaining, float32 (n_obs, 2 · width); rows of other spots are empty.

    Every other patch has 1.2 times as much of a stain, the others that much less. What an earlier call stored for the same
    patches is returned as it is.
    """
    from scipy.sparse import csr_matrix

    rows, width, side = restained_rows(study, n, seed), identity["width"], identity["input_px"]
    known = _known_changes(study, identity, rows)
    if known is not None:
        return known
    # One orientation of the patch itself is enough for a difference.
    once = {key: value for key, value in without_tokens(identity).items() if key != "augment"} | {"orientations": 1}
    embed = Embedder(model, once, embedding_cache(model, once))
    changes = np.zeros((len(rows), _N_COPIES, width), dtype=np.float32)
    number_of = {row: number for number, row in enumerate(rows.tolist())}
    batches = stream_patches(study, batch_size, num_workers, rows, Reading(side, skip_unreadable=True))
    with progress_bar(len(rows), f"restain ({identity['name']})") as bar:
        for index, windows in batches:
            place = np.array([number_of[row] for row in index.tolist()])
            factors = np.where(place % 2, 1 / FACTOR, FACTOR)
            fields = [reduced(pixels, side) for pixels in windows.fields]
            before, copies = embed(fields)["features"], [restained(pixels, factors) for pixels in fields]
            for number in range(_N_COPIES):
                changes[place, number] = embed([copy[number] for copy in copies])["features"] - before
            # What cannot be read is taken not to change.
            changes[place[windows.unreadable]] = 0
            bar.update(len(index))
    embed.flush()
    changes, rows = changes[np.argsort(rows)], np.sort(rows)
    counts = np.zeros(study.n_obs + 1, dtype=np.int64)
    counts[rows + 1] = _N_COPIES * width
    columns = np.tile(np.arange(_N_COPIES * width), len(rows))
    return csr_matrix((changes.ravel(), columns, np.cumsum(counts)), shape=(study.n_obs, _N_COPIES * width))


def _known_changes(study: Study, identity: dict[str, Any], rows: np.ndarray) -> csr_matrix | None:
    """What an earlier call stored for the same spots, patches and encoder; None if there is nothing."""
    from scipy.sparse import csr_matrix, issparse

    name = identity["name"]
    values = study.table.obsm.get(_schema.restained_key(name))
    if study.record("encoder", {}).get(name) != identity or not issparse(values):
        return None
    try:
        check_embedding(study, name)
    except Img2GeneError:
        return None
    known = csr_matrix(values)
    same = np.array_equal(np.flatnonzero(np.diff(known.indptr)), np.sort(rows))
    return known if same and known.shape[1] == _N_COPIES * identity["width"] else None


def stored_changes(study: Study, name: str, width: int, rows: np.ndarray) -> np.ndarray | None:
    """Stored changes of the features of chosen spots, float32 (n, width); None where there are none."""
    from scipy.sparse import csr_matrix, issparse

    values = study.table.obsm.get(_schema.restained_key(name))
    if not issparse(values) or values.shape[1] != _N_COPIES * width:
        return None
    part = csr_matrix(values)[rows]
    known = part[np.diff(part.indptr) > 0].toarray().reshape(-1, width).astype(np.float32)
    return known if len(known) and np.isfinite(known).all() else None
