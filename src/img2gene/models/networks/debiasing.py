"""Debiasing of networks: counterfactual effects, and backdoor adjustment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from img2gene._errors import Img2GeneError, listing, raise_problems

# The views that are observed in each of the two terms of an effect; the others take their reference values.
_TERMS: dict[str, tuple[frozenset[str], frozenset[str] | None]] = {
    "none": (frozenset({"own", "around", "section"}), None),
    "TE": (frozenset({"own", "around", "section"}), frozenset()),
    "TDE": (frozenset({"own", "around", "section"}), frozenset({"around", "section"})),
    "TIE": (frozenset({"own", "around", "section"}), frozenset({"own"})),
    "NDE": (frozenset({"own"}), frozenset()),
    "NIE": (frozenset({"around", "section"}), frozenset()),
}
EFFECTS = tuple(_TERMS)
# What the views around a spot add to it; without these views it is nothing.
CONTEXT_EFFECTS = tuple(
    name for name, (seen, subtracted) in _TERMS.items() if "own" not in seen or "own" in (subtracted or ())
)


class Views(NamedTuple):
    """The three views of a spot, or of references for them.

    Attributes
    ----------
    own
        (B, m, d): tokens t of the spot's own patch; reference (m, d).
    around
        (B, k, d): tokens n of the patches around it; reference (k, d).
    section
        (B, d): token g of the spot from the whole section; reference (d,).

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.debiasing import Views
    >>> Views(torch.zeros(8, 16, 4), torch.zeros(8, 24, 4), torch.zeros(8, 4)).section.shape
    torch.Size([8, 4])
    """

    own: Tensor
    around: Tensor
    section: Tensor


def counterfactual(
    fuse: Callable[[Tensor, Tensor, Tensor], Tensor], views: Views, references: Views, effect: str
) -> Tensor:
    """Embedding (B, d) of spots as a causal effect of what is seen, against references ("no treatment").

    With F = ``fuse``, views t, n, g and references t̄, n̄, ḡ::

        none = F(t, n, g)
        TE   = F(t, n, g) − F(t̄, n̄, ḡ)     total effect
        TDE  = F(t, n, g) − F(t̄, n, g)     total direct effect of the spot's own morphology
        TIE  = F(t, n, g) − F(t, n̄, ḡ)     total indirect effect, of the context
        NDE  = F(t, n̄, ḡ) − F(t̄, n̄, ḡ)     natural direct effect: the context is not looked at
        NIE  = F(t̄, n, g) − F(t̄, n̄, ḡ)     natural indirect effect: the spot's own patch is not looked at

    so that TE = TDE + NIE = TIE + NDE. No gradient flows into the subtracted term. NIE predicts a spot without its own
    patch, whose morphology is most of the signal: choose it to study context, not by default.

    Parameters
    ----------
    fuse
        ``fuse(own, around, section)`` → (B, d). If it draws random numbers (dropout), the terms draw their own.
    views
        The views of a batch.
    references
        Their references, of the same shapes without the spots.
    effect
        One of ``EFFECTS``.

    References
    ----------
    Img2Gene (Zhang et al., IEEE JBHI 2026), debiasing; Pearl, "Direct and indirect effects", UAI 2001.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.debiasing import Views, counterfactual
    >>> views = Views(torch.ones(2, 1, 3), torch.ones(2, 4, 3), torch.ones(2, 3))
    >>> references = Views(torch.zeros(1, 3), torch.zeros(4, 3), torch.zeros(3))
    >>> counterfactual(lambda t, n, g: t.sum(1) + n.sum(1) + g, views, references, "TDE")
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    if effect not in _TERMS:
        raise Img2GeneError(f"effect={effect!r}: choose one of {listing(EFFECTS)}.")
    observed, subtracted = _TERMS[effect]
    baseline = Views(*(_repeated(*part) for part in zip(Views._fields, references, views, strict=True)))
    total = fuse(*_mixed(views, baseline, observed))
    if subtracted is None:
        return total
    # References alone are the same for every spot, so one row of them is enough.
    rows = Views(*(part[:1] for part in baseline)) if not subtracted else _mixed(views, baseline, subtracted)
    with torch.no_grad():
        without = fuse(*rows)
    return total - without


def _repeated(name: str, reference: Tensor, view: Tensor) -> Tensor:
    if reference.shape != view.shape[1:]:
        raise Img2GeneError(
            f"The reference of `{name}` has shape {tuple(reference.shape)}; "
            f"the view {tuple(view.shape)} needs {tuple(view.shape[1:])}."
        )
    return reference.to(view.dtype).expand_as(view)


def _mixed(views: Views, baseline: Views, observed: frozenset[str]) -> Views:
    return Views(*(getattr(views if name in observed else baseline, name) for name in Views._fields))


class RunningReference(nn.Module):
    """Running means of the views, for networks whose encoder is trained: t̄ ← (1 − r) t̄ + r · mean of the batch.

    The first batch initialises them; until then they are NaN, so that a network without any update cannot pass for
    a debiased one. Call :meth:`update` outside the forward pass: an ensemble runs the forward pass
    under ``torch.func.vmap``, where buffers cannot be written. For an ensemble, give the shapes its number of members as
    first axis. Where features are frozen, :class:`ExactReference` is better.

    Parameters
    ----------
    own, around, section
        Shapes of the references, (m, d), (k, d) and (d,).
    rate
        r, the share of a new batch.

    References
    ----------
    Tang et al., "Unbiased Scene Graph Generation from Biased Training", CVPR 2020 (moving average of features).

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.debiasing import RunningReference, Views
    >>> reference = RunningReference((1, 2), (4, 2), (2,), rate=0.5)
    >>> for value in (1.0, 3.0):
    ...     reference.update(Views(torch.full((1, 2), value), torch.zeros(4, 2), torch.zeros(2)))
    >>> reference.references.own
    tensor([[2., 2.]])
    """

    own: Tensor
    around: Tensor
    section: Tensor
    n_updates: Tensor

    def __init__(
        self, own: Sequence[int], around: Sequence[int], section: Sequence[int], *, rate: float = 5e-4
    ) -> None:
        if not 0 < rate <= 1:
            raise Img2GeneError(f"rate={rate!r}: expected a share above 0 and at most 1.")
        super().__init__()
        self.rate = rate
        for name, shape in zip(Views._fields, (own, around, section), strict=True):
            self.register_buffer(name, torch.full(tuple(shape), torch.nan))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))

    @property
    def references(self) -> Views:
        """The running means."""
        return Views(self.own, self.around, self.section)

    @torch.no_grad()
    def update(self, batch_mean: Views) -> None:
        """Move towards the means of a batch, each of the shape of its reference."""
        problems = [
            f"The mean of `{name}` has shape {tuple(new.shape)}, its reference {tuple(old.shape)}."
            for name, old, new in zip(Views._fields, self.references, batch_mean, strict=True)
            if old.shape != new.shape
        ]
        raise_problems(problems)
        # Chosen on the device, as reading the counter would wait for the GPU at every step.
        first = self.n_updates == 0
        for old, new in zip(self.references, batch_mean, strict=True):
            old.copy_(torch.where(first, new, old + self.rate * (new - old)))
        self.n_updates += 1


class MeanAccumulator:
    """Exact mean over the rows of batches of any sizes; sum and count are kept in double precision.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.debiasing import MeanAccumulator
    >>> mean = MeanAccumulator()
    >>> for batch in torch.arange(5.0)[:, None].split(2):
    ...     mean.add(batch)
    >>> mean.mean()
    tensor([2.])
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, batch: Tensor) -> None:
        """Add a batch (B, …)."""
        # On the CPU, as not every device has double precision.
        total = batch.detach().cpu().double().sum(dim=0)
        if self.total is not None and self.total.shape != total.shape:
            raise Img2GeneError(f"Rows of shape {tuple(total.shape)} after rows of shape {tuple(self.total.shape)}.")
        self.total = total if self.total is None else self.total + total
        self.count += len(batch)

    def mean(self) -> Tensor:
        """The mean of all rows so far, float32 (…)."""
        if self.total is None or not self.count:
            raise Img2GeneError("There are no rows to average; call `add` with the training data first.")
        return (self.total / self.count).float()


class ExactReference:
    """Means of the views over all training spots, which do not depend on batches; recompute them when features change.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.debiasing import ExactReference, Views
    >>> reference = ExactReference()
    >>> for value in (1.0, 2.0, 6.0):
    ...     reference.add(Views(torch.full((1, 1, 2), value), torch.zeros(1, 4, 2), torch.zeros(1, 2)))
    >>> reference.references().own
    tensor([[3., 3.]])
    """

    def __init__(self) -> None:
        self.parts = tuple(MeanAccumulator() for _ in Views._fields)

    def add(self, views: Views) -> None:
        """Add the views of a batch."""
        for part, view in zip(self.parts, views, strict=True):
            part.add(view)

    def references(self) -> Views:
        """The means of all spots so far, float32 on the CPU."""
        return Views(*(part.mean() for part in self.parts))


def calibrate(prediction: Tensor, reference_prediction: Tensor, training_mean: Tensor) -> Tensor:
    """Restore the units of a debiased prediction: ŷ_deb = f(x) − f(x̄) + ȳ_train.

    Parameters
    ----------
    prediction
        (B, G): f(x).
    reference_prediction
        (G,) or (B, G): the prediction for the reference.
    training_mean
        (G,): mean training label.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.debiasing import calibrate
    >>> calibrate(torch.tensor([[5.0], [3.0]]), torch.tensor([4.0]), torch.tensor([1.0]))
    tensor([[2.],
            [0.]])
    """
    return prediction - reference_prediction + training_mean


def confounder_dictionary(features: np.ndarray, n_confounders: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """K-means centroids of training features, which stand for the confounders (stain, scanner), and their frequency.

    Columns are standardised for the clustering; the centroids come back in the units of the features.

    Parameters
    ----------
    features
        (n, d): means of the training sections, which vary by slide only, or features of training spots.
    n_confounders
        Number k of centroids.
    seed
        Seed of the initial centroids.

    Returns
    -------
    Centroids float32 (k, d), and the share of the rows in each, float32 (k,), which sums to 1.

    References
    ----------
    Img2Gene (Zhang et al., IEEE JBHI 2026), backdoor adjustment; Wang et al., "Visual Commonsense R-CNN", CVPR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.networks.debiasing import confounder_dictionary
    >>> centroids, frequency = confounder_dictionary(np.array([[0.0], [1.0], [1.0], [9.0]]), 1, seed=0)
    >>> centroids.tolist(), frequency.tolist()
    ([[2.75]], [1.0])
    """
    features = np.asarray(features)
    problems = []
    if not 1 <= n_confounders <= len(features):
        problems.append(f"n_confounders={n_confounders!r} for {len(features)} rows of features: expected 1 to as many.")
    if not np.isfinite(features).all():
        problems.append(f"{int((~np.isfinite(features)).any(axis=1).sum())} rows have NaN or infinite features.")
    raise_problems(problems)
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    # Without scaling, the components of largest variance would decide alone.
    scaler = StandardScaler()
    clusters = KMeans(n_confounders, random_state=seed).fit(scaler.fit_transform(features))
    frequency = np.bincount(clusters.labels_, minlength=n_confounders) / len(features)
    return scaler.inverse_transform(clusters.cluster_centers_).astype(np.float32), frequency.astype(np.float32)


class Backdoor(nn.Module):
    """Adds the expected confounders to an embedding, P(Y | do X) ≈ f(x ⊕ Σ_c α_c P(c) c).

    α = softmax over c of (W₁x)ᵀ(W₂c) / √d. Here ⊕ is concatenation followed by a linear layer back to ``dim``, so that
    centroids need not be as wide as the embedding and the network can leave them aside.

    Parameters
    ----------
    dim
        Width d of the embedding.
    centroids
        (k, q): confounders c, from :func:`confounder_dictionary`.
    frequency
        (k,): their shares P(c) of the training data.

    References
    ----------
    Img2Gene (Zhang et al., IEEE JBHI 2026), backdoor adjustment.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.debiasing import Backdoor
    >>> backdoor = Backdoor(4, centroids=torch.randn(3, 6), frequency=torch.tensor([0.5, 0.3, 0.2]))
    >>> backdoor(torch.randn(8, 4)).shape
    torch.Size([8, 4])
    """

    centroids: Tensor
    frequency: Tensor

    def __init__(self, dim: int, centroids: np.ndarray | Tensor, frequency: np.ndarray | Tensor) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.as_tensor(centroids, dtype=torch.float32).clone())
        self.register_buffer("frequency", torch.as_tensor(frequency, dtype=torch.float32).clone())
        self._check()
        width = self.centroids.shape[1]
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(width, dim, bias=False)
        self.combine = nn.Linear(dim + width, dim)

    def _check(self) -> None:
        k, frequencies = tuple(self.centroids.shape), tuple(self.frequency.shape)
        problems = []
        if len(k) != 2 or frequencies != k[:1]:
            problems.append(f"centroids {k} and frequency {frequencies}: expected (k, width) and (k,).")
        # On the meta device, where only shapes exist, there are no values to look at.
        known = not self.frequency.is_meta
        if known and (bool((self.frequency < 0).any()) or abs(float(self.frequency.sum()) - 1) > 1e-3):
            problems.append("frequency: expected shares that are not negative and sum to 1.")
        raise_problems(problems)

    def context(self, embedding: Tensor) -> Tensor:
        """Σ_c α_c P(c) c, (…, q), for an embedding (…, d)."""
        query, key = self.query(embedding), self.key(self.centroids)
        attention = (query @ key.mT / key.shape[-1] ** 0.5).softmax(dim=-1)
        return (attention * self.frequency) @ self.centroids

    def forward(self, embedding: Tensor) -> Tensor:
        """The adjusted embedding (…, d)."""
        return self.combine(torch.cat([embedding, self.context(embedding)], dim=-1))
