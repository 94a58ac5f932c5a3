"""Exact retrieval of reference spots from a bank, in blocks, and averages of their values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp

from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene.models.data import n_faulty
from img2gene.models.stored import StoredConfig

WEIGHTINGS = ("uniform", "similarity")
_KINDS = ("group", "section")
_QUERIES, _REFERENCES, _SORTED, _AVERAGED = 512, 2**16, 64, 512
# Cosines that differ by less than _TIE may be equal but for rounding; _SPARE candidates beyond the k-th show such ties.
_TIE, _SPARE = 1e-6, 16


@dataclass(frozen=True)
class Neighbors:
    """Nearest reference spots of each query, most similar first; made by :meth:`img2gene.models.ReferenceBank.nearest`.

    Attributes
    ----------
    rows
        int64 (n_queries, k): rows of the bank.
    similarity
        float32 (n_queries, k): cosines.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models import Neighbors
    >>> Neighbors(np.array([[4, 2]]), np.array([[0.9, 0.8]], dtype="f4")).rows[0, 0]
    np.int64(4)
    """

    rows: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class ReferenceBank:
    """Embedding and expression of reference spots, and where they come from.

    Attributes
    ----------
    keys
        float32 (n, d): embeddings of length 1.
    values
        float32 (n, G): what is averaged, such as labels.
    sections, groups
        str (n,): section and group (usually patient) of each spot.
    positions
        float32 (n, 2): row and column in µm.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models import ReferenceBank
    >>> names = np.array(["S1", "S1", "S2"])
    >>> values = np.array([[1.0], [2.0], [9.0]], dtype="f4")
    >>> bank = ReferenceBank(np.eye(3, dtype="f4"), values, names, names, np.zeros((3, 2), dtype="f4"))
    >>> neighbors = bank.nearest(np.array([[2.0, 1.0, 0.0]]), k=2)
    >>> neighbors.rows, bank.average(neighbors)
    (array([[0, 1]]), array([[1.5]], dtype=float32))
    """

    keys: np.ndarray
    values: np.ndarray
    sections: np.ndarray
    groups: np.ndarray
    positions: np.ndarray

    shapes: ClassVar[dict[str, tuple[str | int, ...]]] = {
        "keys": ("references", "key"),
        "values": ("references", "genes"),
        "section": ("references",),
        "group": ("references",),
        "positions": ("references", 2),
    }
    dtypes: ClassVar[dict[str, str]] = {"section": "int32", "group": "int32"}

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: np.ndarray) -> ReferenceBank:
        """The bank of chosen spots (boolean mask or indices)."""
        parts = (self.keys, self.values, self.sections, self.groups, self.positions)
        return ReferenceBank(*(part[rows] for part in parts))

    def nearest(
        self,
        queries: np.ndarray,
        k: int,
        *,
        excluded: np.ndarray | None = None,
        by: str = "group",
    ) -> Neighbors:
        """Find the ``k`` reference spots of the highest cosine, exactly; of equal ones the lowest row comes first.

        Memory is bounded by blocks of 512 queries by 65,536 references, whatever the size of either, and by a copy of the keys
        where something is excluded.

        Parameters
        ----------
        queries
            float (n_queries, d), of any length but 0.
        k
            Spots for each query.
        excluded
            str (n_queries,): a group whose spots are not looked at for this query, such as its own patient; one that the bank
            does not hold, such as ``""``, leaves nothing out.
        by
            What ``excluded`` names: a ``"group"`` or a ``"section"``.

        Raises
        ------
        Img2GeneError
            After exclusions the bank is empty or has fewer than ``k`` spots; queries that are NaN or of
            another width; unknown options. No query is answered then.
        """
        queries = np.asarray(queries)
        self._check_queries(queries)
        check_size(k, len(self))
        barred, codes = (None, None) if excluded is None else self._barred(excluded, by, len(queries), k)
        neighbors = Neighbors(
            np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
        )
        for chosen, kept in _alike(barred, codes, len(queries)):
            keys = self.keys if kept is None else self.keys[kept]
            # Stored arrays are read-only, which PyTorch warns about.
            search = _Search(keys if keys.flags.writeable else keys.copy(), k)
            for rows in _blocks(len(chosen), _QUERIES):
                similarity, index = search(unit_rows(queries[chosen[rows]]))
                neighbors.similarity[chosen[rows]] = similarity
                neighbors.rows[chosen[rows]] = index if kept is None else kept[index]
        return neighbors

    def own(self, sections: np.ndarray, by: str) -> np.ndarray | None:
        """What :meth:`nearest` is to leave out for queries of sections that the bank may hold.

        Parameters
        ----------
        sections
            str (n_queries,): section of each query.
        by
            ``"section"``: the query's section; ``"group"``: its group, if the bank knows it; ``"none"``: nothing, None.
        """
        _check_kind(by, ("none", *_KINDS))
        if by == "none":
            return None
        known = dict(zip(self.sections.tolist(), getattr(self, f"{by}s").tolist(), strict=True))
        return np.array([known.get(name, "") for name in np.asarray(sections).tolist()])

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Names (JSON) and arrays."""
        names, codes = {}, {}
        for kind, labels in (("section", self.sections), ("group", self.groups)):
            unique, number = np.unique(labels, return_inverse=True)
            names[kind], codes[kind] = unique.tolist(), number.astype(np.int32)
        return names, {"keys": self.keys, "values": self.values, **codes, "positions": self.positions}

    @classmethod
    def from_state(cls, names: dict[str, Any], arrays: dict[str, np.ndarray]) -> ReferenceBank:
        """Restore a bank."""
        check = StoredConfig()
        if check.entries("bank", names, _KINDS):
            for kind in _KINDS:
                check.codes(f"bank.{kind}", arrays[kind], names[kind])
        if not len(arrays["keys"]):
            check.messages.append("The bank holds no reference spots.")
        check.raise_all()
        sections, groups = (np.array(names[kind])[arrays[kind]] for kind in ("section", "group"))
        return cls(arrays["keys"], arrays["values"], sections, groups, arrays["positions"])

    def check_request(self, k: int, excluded: np.ndarray | None, by: str, *, argument: str) -> None:
        """Refuse what :meth:`nearest` would for this number of spots, which messages call ``argument``, and these exclusions."""
        check_size(k, len(self), argument)
        if excluded is not None:
            self._barred(excluded, by, len(excluded), k, argument)

    def _check_queries(self, queries: np.ndarray) -> None:
        problems, width = [], self.keys.shape[1]
        if queries.ndim != 2 or queries.shape[1] != width:
            problems.append(f"Queries have shape {queries.shape}; the bank takes (n_queries, {width}).")
        elif bad := n_faulty(queries):
            problems.append(f"{bad} of {len(queries)} queries are NaN or infinite, so nothing is near to them.")
        raise_problems(problems)

    def _barred(
        self, excluded: np.ndarray, by: str, n: int, k: int, argument: str = "k"
    ) -> tuple[np.ndarray, np.ndarray]:
        """As numbers: what each query bars (−1 for nothing), and what each reference spot belongs to."""
        _check_kind(by, _KINDS)
        if len(excluded) != n:
            raise Img2GeneError(f"{len(excluded)} exclusions for {n} queries.")
        names, codes, counts = np.unique(getattr(self, f"{by}s"), return_inverse=True, return_counts=True)
        number = {name: i for i, name in enumerate(names.tolist())}
        barred = np.array([number.get(name, -1) for name in np.asarray(excluded).tolist()], dtype=np.int64)
        short = [i for i in np.unique(barred[barred >= 0]) if len(self) - counts[i] < k]
        raise_problems(
            [
                f"Without the {by} {names[i]} the bank has {len(self) - counts[i] or 'no'} reference spots, fewer than {argument}={k} "
                f"({by}s in it: {listing(names)}). Lower `{argument}`, train on others too, or exclude nothing."
                for i in short
            ]
        )
        return barred, codes

    def average(self, neighbors: Neighbors, weighting: str = "uniform") -> np.ndarray:
        """Average the values of the neighbours of each query, float32 (n_queries, G).

        Parameters
        ----------
        neighbors
            Result of :meth:`nearest`.
        weighting
            ``"uniform"``, or ``"similarity"``: weights in proportion to the cosine where it is positive, else 0 (uniform where
            none is).
        """
        weights = neighbor_weights(neighbors.similarity, weighting)
        out = np.empty((len(neighbors.rows), self.values.shape[1]), dtype=np.float32)
        n, k = neighbors.rows.shape
        for rows in _blocks(n, _AVERAGED):
            size = len(neighbors.rows[rows])
            picked = sp.csr_matrix(
                (weights[rows].ravel(), neighbors.rows[rows].ravel(), np.arange(size + 1) * k), shape=(size, len(self))
            )
            out[rows] = picked @ self.values
        return out


@runtime_checkable
class Retrieves(Protocol):
    """A predictor that retrieves training spots, and can return them.

    Examples
    --------
    >>> import img2gene as ig
    >>> isinstance(ig.models.create("ridge"), ig.models.Retrieves)
    False
    """

    def reference_bank(self) -> ReferenceBank:
        """The training spots that predictions are retrieved from."""
        ...

    def neighbors(
        self,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        k: int,
        excluded: np.ndarray | None = None,
        by: str = "group",
    ) -> Neighbors:
        """Find the ``k`` nearest spots of the bank; exclusions as in :meth:`img2gene.models.ReferenceBank.nearest`.

        Takes the additional inputs of ``predict``, too.
        """
        ...


def check_size(k: int, n: int, argument: str = "k") -> None:
    """Refuse to look for more spots than a bank of ``n`` has; ``argument`` is what messages call ``k``."""
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise Img2GeneError(f"{argument}={k!r}: expected at least 1, a whole number.")
    if k > n:
        raise Img2GeneError(
            f"{argument}={k}: the bank has {n or 'no'} reference spots. Lower `{argument}`, or train on more sections."
        )


def _check_kind(by: str, known: tuple[str, ...]) -> None:
    if by not in known:
        raise Img2GeneError(f"by={by!r}: choose one of {listing(known)}.")


def neighbor_weights(similarity: np.ndarray, weighting: str) -> np.ndarray:
    """Weights float32 (n_queries, k) of neighbours; rows sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.reference_bank import neighbor_weights
    >>> neighbor_weights(np.array([[0.75, 0.25, -0.5]]), "similarity")
    array([[0.75, 0.25, 0.  ]], dtype=float32)
    """
    if weighting not in WEIGHTINGS:
        raise Img2GeneError(f"weighting={weighting!r}: choose one of {listing(WEIGHTINGS)}.")
    weights = np.ones(similarity.shape) if weighting == "uniform" else np.maximum(similarity, 0).astype(np.float64)
    weights[weights.sum(axis=1) == 0] = 1
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; rows of zeros stay zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.reference_bank import unit_rows
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    values = np.asarray(values, dtype=np.float32)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, length, out=np.zeros_like(values), where=length > 0)


def _blocks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, start + size)


def _alike(
    barred: np.ndarray | None, codes: np.ndarray | None, n: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Queries that look at the same reference spots, with those spots (None for all)."""
    if barred is None:
        yield np.arange(n), None
        return
    for code in np.unique(barred):
        yield np.flatnonzero(barred == code), None if code < 0 else np.flatnonzero(codes != code)


@dataclass(frozen=True)
class _Search:
    """Exact search for the ``k`` keys (n, d) of the highest cosine; equal cosines are sorted by row."""

    keys: np.ndarray
    k: int

    def __call__(self, queries: np.ndarray, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows, (B, k) each, of unit queries (B, d), sorted among the best ``width`` or more."""
        n, k = len(self.keys), self.k
        width = min(width or k + _SPARE, n)
        similarity, rows = self._best(queries, width)
        close = np.flatnonzero((np.diff(similarity[:, : k + 1]) > -_TIE).any(axis=1))
        for part in _blocks(len(close), _SORTED):
            chosen = close[part]
            similarity[chosen], rows[chosen] = self._sorted(queries[chosen], rows[chosen])
        cut = similarity[:, k - 1] - similarity[:, -1] <= _TIE
        if width < n and cut.any():
            # There may be more keys as near as the k-th, such as many copies of one blank patch.
            similarity[cut, :k], rows[cut, :k] = self(queries[cut], 2 * width)
        return similarity[:, :k], rows[:, :k]

    def _best(self, queries: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``width`` largest products in single precision."""
        import torch

        block, parts = torch.from_numpy(queries), []
        for start in range(0, len(self.keys), _REFERENCES):
            products = block @ torch.from_numpy(self.keys[start : start + _REFERENCES]).T
            values, index = products.topk(min(width, products.shape[1]), dim=1)
            parts.append((values, index + start))
        values, index = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        best = values.topk(width, dim=1)
        return best.values.numpy(), index.gather(1, best.indices).numpy()

    def _sorted(self, queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (B, width) by falling cosine in double precision, then by row, and the cosines.

        A product in single precision is rounded differently from block to block, so that it may not decide between copies.
        """
        cosines = np.einsum("qd,qkd->qk", queries.astype(np.float64), self.keys[rows].astype(np.float64))
        order = np.lexsort((rows, -cosines), axis=-1)
        return np.take_along_axis(cosines, order, axis=1), np.take_along_axis(rows, order, axis=1)
