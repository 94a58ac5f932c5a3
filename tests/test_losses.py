"""Losses: values worked out by hand or by scipy, where gradients flow, what must not change them, and vmap."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import nbinom, poisson

from img2gene._errors import Img2GeneError
from img2gene.models.networks import losses


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(function, *inputs):
    """Gradient with respect to the first input."""
    first = inputs[0].clone().requires_grad_()
    return torch.autograd.grad(function(first, *inputs[1:]), first)[0]


def test_coherence_of_three_spots_by_hand():
    embedding = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    other = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 0.0, 1.0]])
    # cosines 0, 1/√2, 1/√2; correlations −1, 0, 0; each pair stands twice in the matrix and in the count
    expected = ((0 + 1) ** 2 + 0.5 + 0.5) / 3
    assert losses.coherence(embedding, other).item() == pytest.approx(expected, rel=1e-5)


def test_coherence_is_zero_where_both_agree_and_only_there():
    values = random(6, 5)
    centred = values - values.mean(1, keepdim=True)
    assert losses.coherence(centred, values).item() == pytest.approx(0, abs=1e-10)
    assert losses.coherence(centred, values.flip(0)).item() > 0.1


def test_coherence_does_not_see_lengths_offsets_or_the_order_of_spots():
    embedding, other = random(6, 5), random(6, 9, seed=1)
    length, order = torch.tensor([0.1, 2, 30, 1, 5, 7])[:, None], torch.tensor([3, 1, 5, 0, 2, 4])
    value = losses.coherence(embedding, other)
    torch.testing.assert_close(losses.coherence(length * embedding, 3 * length * other + length), value)
    torch.testing.assert_close(losses.coherence(embedding[order], other[order]), value)
    assert not torch.isclose(losses.coherence(embedding[order], other), value)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.567])
def test_a_profile_without_variance_has_correlation_zero_whatever_its_level(constant):
    embedding = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    other = torch.full((2, 37), constant)
    assert losses.coherence(embedding, other).item() == 1  # cosine 1 against correlation 0
    assert torch.isfinite(gradient(losses.coherence, embedding, other)).all()


def test_an_embedding_of_zeros_has_cosine_zero_and_a_finite_gradient():
    embedding, other = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert losses.coherence(embedding, other).item() == pytest.approx(1)  # 0 against −1
    assert gradient(losses.coherence, embedding, other).abs().max() < 10


def test_coherence_of_fewer_than_two_spots_is_zero_and_can_be_trained():
    for spots in (0, 1):
        embedding = random(spots, 3)
        assert losses.coherence(embedding, random(spots, 4)).item() == 0
        assert gradient(losses.coherence, embedding, random(spots, 4)).abs().sum() == 0


def test_coherence_in_half_precision_is_computed_in_single():
    embedding, other = random(40, 8).bfloat16(), random(40, 9, seed=1).bfloat16()
    found = losses.coherence(embedding, other)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, losses.coherence(embedding.float(), other.float()))


def test_distillation_by_hand_and_the_fused_prediction_gets_no_gradient():
    target, fused = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]).requires_grad_()
    first, second = torch.zeros(1, 2).requires_grad_(), torch.ones(1, 2)
    loss = losses.distillation([first, second], fused, target)
    # first: .7 · (1 + 4)/2 + .3 · (9 + 4)/2; second: .7 · (0 + 1)/2 + .3 · (4 + 1)/2
    assert loss.item() == pytest.approx(1.75 + 1.95 + 0.35 + 0.75)
    loss.backward()
    assert fused.grad is None
    # 2 (.7 (0 − y) + .3 (0 − ŷ)) / 2
    torch.testing.assert_close(first.grad, torch.tensor([[-0.7 - 0.9, -1.4 - 0.6]]))


def test_distillation_without_views_is_zero():
    assert losses.distillation([], torch.ones(2, 2), torch.zeros(2, 2)).item() == 0


def test_scores_are_centred_by_spot_and_have_length_one():
    found = losses.normalise_scores(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [0.3, 0.3, 0.3]]))
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(found, [[-half, 0, half], [0, 0, 0], [0, 0, 0]], atol=1e-6)


def test_a_small_but_real_variation_is_kept():
    row = 5 + 1e-3 * random(1, 20)
    assert losses.normalise_scores(row).norm().item() == pytest.approx(1, rel=1e-5)


def test_pathway_loss_by_hand():
    predicted, scores = (
        torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]),
        torch.tensor([[2.0, 4.0, 6.0], [1.0, 1.0, 1.0]]),
    )
    half = 1 / np.sqrt(2)
    expected = ((1 + half) ** 2 + half**2 + 0.25) / 6
    assert losses.pathway(predicted, scores).item() == pytest.approx(expected, rel=1e-5)


def test_spots_without_scores_are_as_if_they_were_not_there():
    predicted, scores, known = random(6, 4), random(6, 5, seed=1), torch.tensor([True, False, True, True, False, True])
    holes = torch.where(known[:, None], scores, torch.nan)
    for loss, target in ((losses.pathway, scores[:, :4]), (losses.coherence, scores)):
        spoilt = holes[:, : target.shape[1]]
        torch.testing.assert_close(loss(predicted, spoilt, known), loss(predicted[known], target[known]))
        found = gradient(loss, predicted, spoilt, known)
        torch.testing.assert_close(found[known], gradient(loss, predicted[known], target[known]))
        assert (found[~known] == 0).all()
        none = torch.zeros(6, dtype=torch.bool)
        assert loss(predicted, spoilt, none).item() == gradient(loss, predicted, spoilt, none).abs().sum().item() == 0


def test_weighted_error_by_hand():
    predicted, target = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    weight = torch.tensor([[2.0, 0.5], [7.0, 1.0]])
    assert losses.weighted_mse(predicted, target).item() == pytest.approx((1 + 4 + 0 + 9) / 4)
    assert losses.weighted_mse(predicted, target, weight).item() == pytest.approx((2 + 2 + 0 + 9) / 4)


def balanced_by_numpy(predicted, target, noise):
    """Written out spot by spot and gene by gene."""
    predicted, target = np.asarray(predicted, float), np.asarray(target, float)
    noise = np.broadcast_to(noise, predicted.shape[1])
    values = []
    for i, g in np.ndindex(*predicted.shape):
        logits = -np.square(predicted[i, g] - target[:, g]) / (2 * noise[g] ** 2)
        values.append(2 * noise[g] ** 2 * (logsumexp(logits) - logits[i]))
    return np.mean(values)


def test_balanced_error_of_two_spots_by_hand():
    predicted, target = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    # 2σ² = 2. Spot 0: logits 0 and −4/2; spot 1: −1/2 and −1/2.
    expected = (2 * np.log(1 + np.exp(-2)) + 2 * np.log(2)) / 2
    assert losses.balanced_mse(predicted, target, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_balanced_error_of_many_genes_is_that_of_each_gene():
    predicted, target = random(7, 37), random(7, 37, seed=1)
    noise = torch.linspace(0.3, 2, 37)
    found = losses.balanced_mse(predicted, target, noise).item()
    assert found == pytest.approx(balanced_by_numpy(predicted, target, noise.numpy()), rel=1e-5)


def test_gradient_of_the_balanced_error_is_that_of_its_formula():
    predicted, target = random(3, 17).double(), random(3, 17, seed=1).double()
    step, numeric = 1e-5, torch.zeros(3, 17, dtype=torch.float64)
    for i, g in np.ndindex(3, 17):
        moved = torch.zeros(3, 17, dtype=torch.float64)
        moved[i, g] = step
        up, down = (balanced_by_numpy(predicted + sign * moved, target, 0.7) for sign in (1, -1))
        numeric[i, g] = (up - down) / (2 * step)
    torch.testing.assert_close(gradient(losses.balanced_mse, predicted, target, 0.7), numeric, rtol=1e-5, atol=1e-8)


def test_balanced_error_of_a_large_batch_is_the_integral_over_the_labels():
    spots, spread, noise = 2000, 1.5, 0.8
    quantiles = (torch.arange(spots, dtype=torch.float64) + 0.5) / spots
    target = spread * np.sqrt(2) * torch.erfinv(2 * quantiles - 1)[:, None]
    predicted = 0.5 * target
    # labels N(0, s²): E_y exp(−(ŷ − y)²/2σ²) = σ/√(σ² + s²) exp(−ŷ²/2(σ² + s²))
    total = noise**2 + spread**2
    evidence = np.log(spots * noise / np.sqrt(total)) - predicted.square() / (2 * total)
    expected = ((predicted - target).square() + 2 * noise**2 * evidence).mean().item()
    assert losses.balanced_mse(predicted, target, noise).item() == pytest.approx(expected, rel=2e-3)


def test_balanced_error_orders_predictions_as_squared_error_does_but_shrinks_less():
    target = random(300, 1, seed=2)
    feature = target + random(300, 1, seed=3)
    noisy = [losses.balanced_mse(target + sd * random(300, 1, seed=4), target, 0.5).item() for sd in (0, 0.5, 1, 2)]
    assert noisy == sorted(noisy)
    slopes = np.linspace(0, 1.5, 31)
    balanced = [losses.balanced_mse(slope * feature, target, 1.0).item() for slope in slopes]
    plain = [losses.weighted_mse(slope * feature, target).item() for slope in slopes]
    # Var(y) = Var(ε) = 1: the mean squared error shrinks the feature by one half, the balanced one (σ² = 1) by nothing.
    assert slopes[np.argmin(plain)] == pytest.approx(0.5, abs=0.1)
    assert slopes[np.argmin(balanced)] == pytest.approx(1, abs=0.15)


def test_balanced_error_trains_neither_labels_nor_noise():
    target, noise = random(4, 3, seed=1).requires_grad_(), torch.tensor(0.5, requires_grad=True)
    predicted = random(4, 3).requires_grad_()
    losses.balanced_mse(predicted, target.detach(), noise).backward()
    assert noise.grad is None
    assert predicted.grad.abs().sum() > 0


def test_balanced_error_keeps_no_square_matrix_for_the_gradient():
    kept = []

    def record(tensor):
        kept.append(tensor.numel())
        return tensor

    predicted = random(50, 40).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        losses.balanced_mse(predicted, random(50, 40, seed=1), 1.0)
    assert kept
    assert max(kept) <= 50 * 40


def nb_by_scipy(log_rate, log_theta, counts, library):
    mean = np.exp(np.asarray(log_rate, float)) * np.asarray(library, float)[:, None]
    theta = np.exp(np.asarray(log_theta, float))
    return -nbinom.logpmf(np.asarray(counts), theta, theta / (theta + mean)).mean()


def test_negative_binomial_equals_that_of_scipy():
    rng = np.random.default_rng(0)
    log_rate, log_theta = random(50, 6) - 6, torch.linspace(-3, 4, 6)
    counts = torch.from_numpy(rng.poisson(3.0, size=(50, 6)) * rng.integers(0, 40, size=(50, 6))).float()
    library = torch.from_numpy(rng.integers(200, 20_000, size=50)).float()
    found = losses.negative_binomial(log_rate, log_theta, counts, library).item()
    assert found == pytest.approx(nb_by_scipy(log_rate, log_theta, counts, library), rel=1e-5)


def test_negative_binomial_by_hand():
    # μ = 2 · 3 = 6 and θ = 2: P(1) = θ (θ/(θ + μ))² μ/(θ + μ) = 2 · 1/16 · 3/4
    value = losses.negative_binomial(
        torch.tensor([[3.0]]).log(), torch.tensor([2.0]).log(), torch.tensor([[1.0]]), torch.tensor([2.0])
    )
    assert value.item() == pytest.approx(-np.log(2 / 16 * 3 / 4), rel=1e-6)


@pytest.mark.parametrize("log_theta", [12.0, 18.0])
def test_without_overdispersion_it_is_a_poisson_also_in_its_gradient(log_theta):
    counts, log_rate = torch.tensor([[0.0, 3.0, 20.0]]), torch.tensor([[-1.0, 1.0, 3.0]])
    arguments = (torch.full((3,), log_theta), counts, torch.ones(1))
    expected = -poisson.logpmf(counts.numpy(), np.exp(log_rate.numpy().astype(float))).mean()
    assert losses.negative_binomial(log_rate, *arguments).item() == pytest.approx(expected, rel=1e-3)
    slope = gradient(losses.negative_binomial, log_rate, *arguments)
    torch.testing.assert_close(slope, (log_rate.exp() - counts) / 3, rtol=1e-3, atol=1e-3)


def test_extreme_rates_dispersions_and_an_empty_spot_stay_finite():
    log_rate = torch.tensor([[-60.0, 30.0], [0.0, 0.0]]).requires_grad_()
    log_theta = torch.tensor([-20.0, 20.0]).requires_grad_()
    counts, library = torch.tensor([[0.0, 1e6], [0.0, 0.0]]), torch.tensor([1e4, 0.0])
    loss = losses.negative_binomial(log_rate, log_theta, counts, library)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(log_rate.grad).all()
    assert torch.isfinite(log_theta.grad).all()
    empty = losses.negative_binomial(log_rate[1:].detach(), log_theta.detach(), counts[1:], library[1:])
    assert empty.item() == pytest.approx(0, abs=1e-12)  # a mean of 0 leaves a count of 0 no choice


def test_its_likelihood_is_highest_at_the_truth():
    rng = np.random.default_rng(1)
    theta, library = 2.0, rng.integers(500, 5000, size=4000)
    mean = library * 0.002
    counts = torch.from_numpy(rng.negative_binomial(theta, theta / (theta + mean))[:, None]).float()
    offset = torch.from_numpy(library).float()

    def value(rate, dispersion):
        rates = torch.full((4000, 1), rate).log()
        return losses.negative_binomial(rates, torch.tensor([dispersion]).log(), counts, offset).item()

    assert value(0.002, 2.0) < min(value(0.001, 2.0), value(0.004, 2.0), value(0.002, 1.0), value(0.002, 4.0))


MATRIX = (6, 20)
HALF = torch.arange(6) % 2 == 0
CASES = {
    "coherence": (losses.coherence, [MATRIX, (6, 9)]),
    "distillation": (lambda a, b, fused, target: losses.distillation([a, b], fused, target), [MATRIX] * 4),
    "normalise_scores": (lambda scores: losses.normalise_scores(scores)[0, 0], [MATRIX]),
    "pathway": (losses.pathway, [MATRIX] * 2),
    "pathway, some unknown": (lambda p, scores: losses.pathway(p, scores, HALF), [MATRIX] * 2),
    "coherence, some unknown": (lambda z, scores: losses.coherence(z, scores, HALF), [MATRIX, (6, 9)]),
    "weighted_mse": (losses.weighted_mse, [MATRIX] * 3),
    "balanced_mse": (lambda predicted, target: losses.balanced_mse(predicted, target, 0.8), [MATRIX] * 2),
    "balanced_mse, noise by gene": (lambda p, t, log: losses.balanced_mse(p, t, log.exp()), [MATRIX] * 2 + [(20,)]),
    "negative_binomial": (
        lambda rate, theta, counts, library: losses.negative_binomial(rate, theta, counts.exp(), library.exp()),
        [MATRIX, (20,), MATRIX, (6,)],
    ),
}


@pytest.mark.parametrize(("loss", "shapes"), CASES.values(), ids=CASES)
def test_values_and_gradients_under_vmap_are_those_of_each_member(loss, shapes):
    inputs = [random(3, *shape, seed=number) for number, shape in enumerate(shapes)]
    both = torch.func.grad_and_value(loss)
    gradients, values = torch.func.vmap(both)(*inputs)
    for member in range(3):
        own = [values[member] for values in inputs]
        expected, value = both(*own)
        torch.testing.assert_close(values[member], value)
        torch.testing.assert_close(gradients[member], expected)
        torch.testing.assert_close(gradient(loss, *own), expected)
    assert gradients.abs().sum() > 0


@pytest.mark.parametrize(("loss", "shapes"), CASES.values(), ids=CASES)
def test_members_may_share_their_targets(loss, shapes):
    stacked = random(3, *shapes[0])
    shared = [random(*shape, seed=number + 1) for number, shape in enumerate(shapes[1:])]
    values = torch.func.vmap(loss, in_dims=(0, *[None] * len(shared)))(stacked, *shared)
    torch.testing.assert_close(values, torch.stack([loss(member, *shared) for member in stacked]))


A, B = torch.zeros(4, 3), torch.zeros(4, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.coherence(A, A[:2]), "4 embeddings and 2 profiles"),
        (lambda: losses.distillation([A, B], A, A), r"target \(4, 3\), fused \(4, 3\), .*views\[1\] \(4, 1\)"),
        (lambda: losses.distillation([A], A, A, alpha=1.5), "alpha=1.5: expected a share"),
        (lambda: losses.pathway(A, B), r"predicted \(4, 3\), scores \(4, 1\)"),
        (lambda: losses.weighted_mse(A, A, B), r"weight \(4, 1\)"),
        (lambda: losses.balanced_mse(A, B, 1.0), r"target \(4, 1\)"),
        (lambda: losses.balanced_mse(A, A, 0.0), r"noise=0.0: expected a positive standard deviation"),
        (lambda: losses.negative_binomial(A, A[0], A, A[0]), r"library has shape \(3,\) .* need \(4,\) and \(3,\)"),
    ],
)
def test_what_would_broadcast_silently_is_refused(call, message):
    with pytest.raises(Img2GeneError, match=message):
        call()


def test_contrast_of_two_spots_by_hand():
    v, u = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    logits = np.array([[1.0, 0.0], [2.0, 2.0]])  # v uᵀ
    alike = np.array([[1.5, 0.5], [0.5, 2.5]])  # (u uᵀ + v vᵀ) / 2
    for tau in (1.0, 2.0):
        scores = alike * tau
        targets = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
        rows = logits / tau - logsumexp(logits / tau, axis=1, keepdims=True)
        columns = logits / tau - logsumexp(logits / tau, axis=0, keepdims=True)
        expected = -((targets * rows).sum() / 2 + (targets * columns).sum() / 2) / 2
        assert losses.contrastive(v, u, tau).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [2, 64])
def test_contrast_is_log_of_the_batch_where_nothing_is_told_apart_and_next_to_nothing_where_all_is(n):
    alike = torch.ones(n, 3)
    assert losses.contrastive(alike, alike).item() == pytest.approx(np.log(n), rel=1e-5)
    apart = 10 * torch.eye(n)
    assert losses.contrastive(apart, apart).item() < 1e-5


def test_contrast_does_not_see_the_order_of_spots_and_sees_a_mismatch():
    v, order = random(6, 4), torch.tensor([3, 1, 5, 0, 2, 4])
    u = v + 0.1 * random(6, 4, seed=1)
    value = losses.contrastive(v, u)
    torch.testing.assert_close(losses.contrastive(v[order], u[order]), value)
    assert losses.contrastive(v[order], u) > value + 0.5


def test_no_gradient_flows_into_the_targets_of_the_contrast():
    v, u = random(5, 3), random(5, 3, seed=1)
    targets = ((u @ u.T + v @ v.T) / 2).softmax(dim=-1)

    def with_fixed_targets(v, u):
        logits = v @ u.T
        rows, columns = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
        return -(targets * (rows + columns)).sum() / len(v) / 2

    torch.testing.assert_close(gradient(losses.contrastive, v, u), gradient(with_fixed_targets, v, u))


def test_reconstruction_is_a_mean_square_with_gradients_both_ways():
    r, u = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert losses.reconstruction(r, u).item() == pytest.approx((1 + 4) / 2)
    torch.testing.assert_close(gradient(losses.reconstruction, r, u), torch.tensor([[1.0, -2.0]]))
    torch.testing.assert_close(gradient(losses.reconstruction, u, r), torch.tensor([[-1.0, 2.0]]))


def test_contrast_and_reconstruction_refuse_what_does_not_fit():
    with pytest.raises(Img2GeneError, match=r"profiles \(3, 2\), images \(4, 2\)"):
        losses.contrastive(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(Img2GeneError, match="temperature=0: expected a positive number"):
        losses.contrastive(torch.zeros(3, 2), torch.zeros(3, 2), temperature=0)
    with pytest.raises(Img2GeneError, match="Shapes differ"):
        losses.reconstruction(torch.zeros(3, 1), torch.zeros(3, 2))
