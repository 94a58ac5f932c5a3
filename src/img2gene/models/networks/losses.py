"""Losses of networks as pure functions: nothing depends on values, so an ensemble is trained under ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from img2gene._errors import Img2GeneError

_GENES_PER_CHUNK = 16


def contrastive(profiles: Tensor, images: Tensor, temperature: float = 1.0) -> Tensor:
    """Contrastive loss between expression and images with soft targets: spots that are alike are no negatives.

    L_c = ½ [CE(logits, targets) + CE(logitsᵀ, targetsᵀ)], with logits = v uᵀ / τ and targets =
    softmax[(u uᵀ + v vᵀ) / 2 · τ] over rows. A model that cannot tell the spots of a batch apart has a loss of log B.

    Parameters
    ----------
    profiles, images
        Embeddings v and u of the same spots, (B, d) each.
    temperature
        τ, positive.

    Notes
    -----
    No gradient flows into the targets: if it did, embeddings that are all alike would make the targets uniform, and the loss
    stay at its chance value.

    References
    ----------
    BLEEP (Xie et al., NeurIPS 2023); CMRCNet (Liu et al., Medical Image Analysis 2026), L_c.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.losses import contrastive
    >>> contrastive(torch.ones(4, 2), torch.ones(4, 2))  # log 4: chance
    tensor(1.3863)
    >>> contrastive(9 * torch.eye(4), 9 * torch.eye(4)) < 1e-6
    tensor(True)
    """
    _same_shape(profiles=profiles, images=images)
    if not temperature > 0:
        raise Img2GeneError(f"temperature={temperature!r}: expected a positive number.")
    v, u = _floats(profiles), _floats(images)
    targets = ((u @ u.mT + v @ v.mT).detach() / 2 * temperature).softmax(dim=-1)
    logits = v @ u.mT / temperature
    by_profile = -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    by_image = -(targets * logits.log_softmax(dim=-2)).sum(dim=-2).mean()
    return (by_profile + by_image) / 2


def reconstruction(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Mean squared error L_r = MSE(r, u) between an embedding put together from expression and a masked image, and the image's.

    Parameters
    ----------
    reconstructed, images
        (B, d) each. Gradients flow into both, so that image embeddings also move towards expression.

    References
    ----------
    CMRCNet (Liu et al., Medical Image Analysis 2026), L_r.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.losses import reconstruction
    >>> reconstruction(torch.zeros(3, 2), torch.tensor([[2.0, 0.0]] * 3))
    tensor(2.)
    """
    _same_shape(reconstructed=reconstructed, images=images)
    return F.mse_loss(_floats(reconstructed), images)


def coherence(embedding: Tensor, other: Tensor, known: Tensor | None = None) -> Tensor:
    """Cross-modal coherence C(S_z, S_y): spots that are alike in one modality shall be alike in the other.

    Mean over the off-diagonal entries of (S_z − S_y)², where S_z holds the cosines between the embeddings of the spots
    and S_y the Pearson correlations between their profiles. A profile without variance (an empty spot) has no
    correlation, and an embedding of zeros no cosine: both count as 0, and no gradient flows into such a row. With fewer
    than two spots the loss is 0.

    Parameters
    ----------
    embedding
        (B, d): the debiased embedding z of the spots.
    other
        (B, q): their expression or pathway scores, usually a target.
    known
        bool (B,): spots that have a profile, by default all; pairs with others are left out of the mean.

    References
    ----------
    Img2Gene (Zhang et al., IEEE JBHI 2026), term C of the loss.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.losses import coherence
    >>> embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> loss = coherence(embedding, torch.tensor([[1.0, 2.0, 3.0], [6.0, 4.0, 2.0]]))  # cosine 0, correlation −1
    >>> loss.round(decimals=3)
    tensor(1.)
    """
    if len(embedding) != len(other):
        raise Img2GeneError(f"{len(embedding)} embeddings and {len(other)} profiles: expected one of each per spot.")
    images, profiles = _unit_rows(_floats(embedding)), normalise_scores(other)
    if known is not None:
        profiles = torch.where(known[:, None], profiles, 0.0)
    difference = images @ images.mT - profiles @ profiles.mT
    spots = len(embedding)
    elsewhere = 1 - torch.eye(spots, dtype=difference.dtype, device=difference.device)
    if known is not None:
        pairs = elsewhere * (known[:, None] & known)
        return (pairs * difference.square()).sum() / pairs.sum().clamp_min(1)
    return (elsewhere * difference.square()).sum() / max(spots * (spots - 1), 1)


def distillation(views: Sequence[Tensor], fused: Tensor, target: Tensor, alpha: float = 0.3) -> Tensor:
    """Heads of single views learn from the target and from the fused prediction.

    Σ_v (1 − α) MSE(ŷ_v, y) + α MSE(ŷ_v, stopgrad ŷ)

    Parameters
    ----------
    views
        Predictions (B, G), one for each view.
    fused
        (B, G): the fused prediction ŷ; no gradient flows into it.
    target
        (B, G): the labels y.
    alpha
        Share of the fused prediction, 0 to 1.

    References
    ----------
    TRIPLEX (Chung et al., CVPR 2024), fusion loss; Img2Gene (Zhang et al., IEEE JBHI 2026).

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.losses import distillation
    >>> distillation([torch.zeros(2, 1)], torch.full((2, 1), 2.0), torch.ones(2, 1), alpha=0.5)  # .5 · 1 + .5 · 4
    tensor(2.5000)
    """
    if not 0 <= alpha <= 1:
        raise Img2GeneError(f"alpha={alpha!r}: expected a share between 0 and 1.")
    _same_shape(target=target, fused=fused, **{f"views[{number}]": view for number, view in enumerate(views)})
    teacher = fused.detach()
    losses = [(1 - alpha) * F.mse_loss(view, target) + alpha * F.mse_loss(view, teacher) for view in views]
    return torch.stack(losses).sum() if losses else target.new_zeros(())


def normalise_scores(scores: Tensor) -> Tensor:
    """Centre each row and divide it by its length, so that products of rows are Pearson correlations.

    Rows without variance (up to rounding) become 0.

    Parameters
    ----------
    scores
        (B, P): pathway scores of the spots.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.losses import normalise_scores
    >>> normalise_scores(torch.tensor([[7.0, 4.0, 0.0, 5.0], [2.0, 2.0, 2.0, 2.0]]))
    tensor([[ 0.5883,  0.0000, -0.7845,  0.1961],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    scores = _floats(scores)
    # Rounding of the mean turns a constant row into noise of some eps, which must not be scaled up to length 1.
    rounding = (32 * torch.finfo(scores.dtype).eps) ** 2 * scores.square().sum(dim=-1, keepdim=True)
    return _unit_rows(scores - scores.mean(dim=-1, keepdim=True), rounding)


def pathway(predicted: Tensor, scores: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean squared error against row-centred pathway scores of unit length, MSE(p̂, p̃).

    Parameters
    ----------
    predicted
        (B, P): predicted scores p̂, as they come from the head.
    scores
        (B, P): pathway scores, which :func:`normalise_scores` turns into the target p̃.
    known
        bool (B,): spots that have scores, by default all; the mean is over these, and 0 without any.

    References
    ----------
    Img2Gene (Zhang et al., IEEE JBHI 2026), pathway term of the loss.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.losses import pathway
    >>> pathway(torch.zeros(3, 4), torch.rand(3, 4))  # rows of length 1 have a mean square of 1/4
    tensor(0.2500)
    """
    _same_shape(predicted=predicted, scores=scores)
    predicted, target = _floats(predicted), normalise_scores(scores)
    if known is None:
        return F.mse_loss(predicted, target)
    # A choice after the difference would still let the gradient of NaN through.
    target = torch.where(known[:, None], target, predicted.detach())
    return (predicted - target).square().sum() / (known.sum() * predicted.shape[-1]).clamp_min(1)


def weighted_mse(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of w (ŷ − y)².

    The mean is over spots and genes, not divided by the sum of the weights of the batch: that would take from a batch
    of rare labels the weight they were given. Weights have mean 1 over the training data.

    Parameters
    ----------
    predicted, target
        (B, G).
    weight
        (B, G), for example of :func:`img2gene.models.networks.imbalance.density_weights`; all 1 if None.

    References
    ----------
    Yang et al., "Delving into Deep Imbalanced Regression", ICML 2021.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.losses import weighted_mse
    >>> weighted_mse(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 0.5]]))  # (1.5 + 2) / 2
    tensor(1.7500)
    """
    _same_shape(predicted=predicted, target=target, **({} if weight is None else {"weight": weight}))
    squared = (_floats(predicted) - target).square()
    return squared.mean() if weight is None else (weight * squared).mean()


def balanced_mse(predicted: Tensor, target: Tensor, noise: float | Tensor) -> Tensor:
    """Balanced MSE, batch-based Monte Carlo form: the error that would be minimised if all labels were equally frequent.

    For each gene, with l_ij = −(ŷ_i − y_j)² / 2σ², the mean over spots of 2σ² [−l_ii + log Σ_j exp l_ij]: each prediction
    has to pick its own label among the labels of the batch. As the batch stands for the distribution of
    labels, it has to be large. The memory taken is that of B · B · 64 numbers, whatever the number of genes: genes
    are done in chunks, and the gradient 2 (Σ_j softmax_j(l_ij) y_j − y_i) is known in closed form, so none of the B · B
    matrices is kept for it.

    Parameters
    ----------
    predicted, target
        (B, G); gradients flow into ``predicted`` alone.
    noise
        σ, positive: SD of the error of a prediction, for all genes or (G,). It is a constant: no gradient flows into it.

    References
    ----------
    Ren et al., "Balanced MSE for Imbalanced Visual Regression", CVPR 2022 (BMC).

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.losses import balanced_mse
    >>> balanced_mse(torch.zeros(2, 1), torch.zeros(2, 1), noise=1.0)  # two labels alike: 2 log 2
    tensor(1.3863)
    """
    _same_shape(predicted=predicted, target=target)
    if not isinstance(noise, Tensor) and not noise > 0:
        raise Img2GeneError(f"noise={noise!r}: expected a positive standard deviation.")
    predicted, target = _floats(predicted), _floats(target.detach())
    if not predicted.numel():
        return predicted.sum()
    noise = torch.as_tensor(noise, dtype=predicted.dtype, device=predicted.device).detach()
    scale = (2 * noise.square()).expand(predicted.shape[-1])
    parts = (values.split(_GENES_PER_CHUNK, dim=-1) for values in (predicted.detach(), target, scale))
    evidence, expected = zip(*map(_evidence, *parts), strict=True)
    now = predicted.detach()
    slope = 2 * (torch.cat(expected, dim=-1) - now)
    normaliser = torch.cat(evidence, dim=-1) + slope * (predicted - now)
    return ((predicted - target).square() + normaliser).mean()


def _evidence(predicted: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """2σ² log Σ_j exp l_ij, and the mean label under softmax_j(l_ij), each (B, genes); scale is 2σ²."""
    logits = -(predicted[:, None] - target[None]).square() / scale
    expected = torch.einsum("ijg,jg->ig", logits.softmax(dim=1), target)
    return scale * logits.logsumexp(dim=1), expected


def negative_binomial(log_rate: Tensor, log_theta: Tensor, counts: Tensor, library: Tensor) -> Tensor:
    """Mean negative log-likelihood of counts under a negative binomial whose mean has the library size as offset.

    Mean μ = library · exp(log_rate), variance μ + μ²/θ. A head of shares that sum to one over the genes passes its
    log-softmax as ``log_rate``. Computed on the log scale and in double precision (except on MPS, which has none): the
    differences of log-gamma functions at large θ, where the distribution becomes a Poisson, are lost in float32.

    Parameters
    ----------
    log_rate
        (B, G): log of the expected count per unit of library.
    log_theta
        (G,): log of θ, the inverse dispersion.
    counts
        (B, G): counts, not negative.
    library
        (B,): library size over the full transcriptome, or a size factor. A spot with none can only have counts of 0.

    References
    ----------
    The likelihood of scVI (Lopez et al., Nature Methods 2018), with an observed library size.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.losses import negative_binomial
    >>> one = torch.zeros(1, 1)
    >>> negative_binomial(one, one[0], counts=one, library=torch.ones(1))  # μ = θ = 1: P(0) = 1/2
    tensor(0.6931)
    """
    _same_shape(log_rate=log_rate, counts=counts)
    if library.shape != counts.shape[:1] or log_theta.shape != counts.shape[1:]:
        raise Img2GeneError(
            f"library has shape {tuple(library.shape)} and log_theta {tuple(log_theta.shape)}; "
            f"counts {tuple(counts.shape)} need {tuple(counts.shape[:1])} and {tuple(counts.shape[1:])}."
        )
    wide = torch.float32 if counts.device.type == "mps" else torch.float64
    counts, log_theta, library = counts.to(wide), log_theta.to(wide), library.to(wide)
    offset = library.clamp_min(torch.finfo(wide).tiny).log()[:, None]
    odds, theta = log_rate.to(wide) + offset - log_theta, log_theta.exp()
    choose = torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)
    likelihood = choose + theta * F.logsigmoid(-odds) + counts * F.logsigmoid(odds)
    return -likelihood.mean().to(_floats(log_rate).dtype)


def _floats(values: Tensor) -> Tensor:
    """At least float32: sums over spots or genes are too coarse in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _unit_rows(rows: Tensor, negligible: float | Tensor = 0.0) -> Tensor:
    """Rows of length 1; those whose squared length is not above ``negligible`` are 0 and get no gradient."""
    squared = rows.square().sum(dim=-1, keepdim=True)
    empty = (squared <= negligible) | (squared <= torch.finfo(rows.dtype).tiny)
    # The inner choice keeps the square root away from 0, where its gradient is infinite even if it is not chosen.
    return torch.where(empty, 0.0, rows / torch.where(empty, 1.0, squared).sqrt())


def _same_shape(**tensors: Tensor) -> None:
    """Refuse what would broadcast silently."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise Img2GeneError(f"Shapes differ: {listed}. Expected the same spots and columns in each.")
