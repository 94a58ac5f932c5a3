"""Debiasing: effects worked out by hand, references, backdoor adjustment, and weights of rare labels."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from img2gene._errors import Img2GeneError
from img2gene.models.networks import imbalance
from img2gene.models.networks.debiasing import (
    EFFECTS,
    Backdoor,
    ExactReference,
    MeanAccumulator,
    RunningReference,
    Views,
    calibrate,
    confounder_dictionary,
    counterfactual,
)
from img2gene.models.networks.imbalance import density_weights


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(spots=5, tokens=3, around=4, dim=2, seed=0):
    return Views(
        *(random(spots, *shape, seed=seed + i) for i, shape in enumerate([(tokens, dim), (around, dim), (dim,)]))
    )


REFERENCES = Views(random(3, 2, seed=10), random(4, 2, seed=11), random(2, seed=12))


def product(own, around, section):
    """Not additive, so that no two effects agree: 1 + t n g, of the sums over tokens."""
    return 1 + own.sum(1) * around.sum(1) * section


# What product makes of one spot with t, n, g = 2, 3, 5 and references 7, 11, 13.
BY_HAND = {
    "none": 1 + 2 * 3 * 5,
    "TE": 2 * 3 * 5 - 7 * 11 * 13,
    "TDE": 2 * 3 * 5 - 7 * 3 * 5,
    "TIE": 2 * 3 * 5 - 2 * 11 * 13,
    "NDE": 2 * 11 * 13 - 7 * 11 * 13,
    "NIE": 7 * 3 * 5 - 7 * 11 * 13,
}


def test_effects_are_those_of_the_equations():
    assert set(BY_HAND) == set(EFFECTS)
    views = Views(torch.tensor([[[2.0]]]), torch.tensor([[[3.0]]]), torch.tensor([[5.0]]))
    references = Views(torch.tensor([[7.0]]), torch.tensor([[11.0]]), torch.tensor([13.0]))
    found = {effect: counterfactual(product, views, references, effect).item() for effect in EFFECTS}
    assert found == BY_HAND


def test_total_effect_is_the_sum_of_direct_and_indirect_effects():
    found = {effect: counterfactual(product, batch(), REFERENCES, effect) for effect in EFFECTS}
    torch.testing.assert_close(found["TE"], found["TDE"] + found["NIE"])
    torch.testing.assert_close(found["TE"], found["TIE"] + found["NDE"])
    # of the same kind they do not add up, as the views interact
    assert not torch.allclose(found["TE"], found["NDE"] + found["NIE"])


def test_total_effect_against_zeros_takes_off_what_an_empty_input_gives():
    zeros = Views(*(torch.zeros_like(part) for part in REFERENCES))
    plain = counterfactual(product, batch(), zeros, "none")
    torch.testing.assert_close(counterfactual(product, batch(), zeros, "TE"), plain - 1)


def test_a_spot_equal_to_the_reference_has_no_effect():
    views = Views(*(part.expand(5, *part.shape) for part in REFERENCES))
    for effect in EFFECTS[1:]:
        assert counterfactual(product, views, REFERENCES, effect).abs().max() == 0


@pytest.mark.parametrize(("effect", "ignored"), [("NIE", ["own"]), ("NDE", ["around", "section"])])
def test_natural_effects_ignore_what_they_leave_at_its_reference(effect, ignored):
    views, other = batch(), batch(seed=5)
    changed = views._replace(**{name: getattr(other, name) for name in ignored})
    value = counterfactual(product, views, REFERENCES, effect)
    assert torch.equal(counterfactual(product, changed, REFERENCES, effect), value)
    assert not torch.equal(counterfactual(product, other, REFERENCES, effect), value)


@pytest.mark.parametrize(("effect", "seen"), [("TE", "tng"), ("NDE", "t"), ("NIE", "ng")])
def test_effects_that_subtract_one_vector_are_a_network_without_effect_and_another_bias(effect, seen):
    views, head = batch(), nn.Linear(2, 4)
    held = Views(*(reference.expand_as(view) for reference, view in zip(REFERENCES, views, strict=True)))
    parts = [view if name in seen else other for name, view, other in zip("tng", views, held, strict=True)]
    by_effect = head(counterfactual(product, views, REFERENCES, effect))
    same = nn.Linear(2, 4)
    same.weight = head.weight
    same.bias = nn.Parameter(head.bias - head.weight @ product(*(part[:1] for part in held))[0])
    torch.testing.assert_close(same(product(*parts)), by_effect)


@pytest.mark.parametrize("effect", ["TDE", "TIE"])
def test_the_other_effects_subtract_what_differs_between_spots(effect):
    views = batch()
    subtracted = product(*views) - counterfactual(product, views, REFERENCES, effect)
    assert subtracted.std(dim=0).max() > 0.1


# Which views are observed in the first, trained term.
TRAINED = {"none": "tng", "TE": "tng", "TDE": "tng", "TIE": "tng", "NDE": "t", "NIE": "ng"}


@pytest.mark.parametrize("effect", EFFECTS)
def test_no_gradient_flows_into_the_subtracted_term(effect):
    weight = torch.tensor(2.0, requires_grad=True)
    views, references = batch(), Views(*(part.clone().requires_grad_() for part in REFERENCES))
    counterfactual(lambda t, n, g: weight * product(t, n, g), views, references, effect).sum().backward()
    kept = [
        view if letter in TRAINED[effect] else reference.detach().expand_as(view)
        for letter, view, reference in zip("tng", views, REFERENCES, strict=True)
    ]
    torch.testing.assert_close(weight.grad, product(*kept).sum())
    if TRAINED[effect] == "tng":
        assert all(reference.grad is None or not reference.grad.any() for reference in references)


@pytest.mark.parametrize("effect", EFFECTS)
def test_effects_of_an_ensemble_under_vmap_are_those_of_its_members(effect):
    weights, views = random(3, 2, 2, seed=7), batch()
    references = [Views(*(part + i for part in REFERENCES)) for i in range(3)]
    stacked = Views(*(torch.stack(parts) for parts in zip(*references, strict=True)))

    def loss(weight, reference):
        return counterfactual(lambda *parts: product(*parts) @ weight, views, reference, effect).square().sum()

    both = torch.func.grad_and_value(loss)
    gradients, values = torch.func.vmap(both)(weights, stacked)
    for i, reference in enumerate(references):
        weight = weights[i].clone().requires_grad_()
        value = loss(weight, reference)
        torch.testing.assert_close(values[i], value.detach())
        torch.testing.assert_close(gradients[i], torch.autograd.grad(value, weight)[0])


def test_an_unknown_effect_lists_the_known_ones():
    with pytest.raises(Img2GeneError, match="effect='nie': choose one of none, TE, TDE, TIE, NDE, NIE"):
        counterfactual(product, batch(), REFERENCES, "nie")


def test_a_reference_of_another_shape_is_named():
    wrong = REFERENCES._replace(around=torch.zeros(9, 2))
    with pytest.raises(Img2GeneError, match=r"`around` has shape \(9, 2\); the view \(5, 4, 2\) needs \(4, 2\)"):
        counterfactual(product, batch(), wrong, "TE")


def means(views):
    return Views(*(view.mean(0) for view in views))


def test_running_mean_follows_its_formula_from_the_first_batch_on():
    reference = RunningReference((3, 2), (4, 2), (2,), rate=0.25)
    steps = [means(batch(seed=seed)) for seed in (0, 10, 20)]
    for step in steps:
        reference.update(step)
    for first, second, third, found in zip(*steps, reference.references, strict=True):
        torch.testing.assert_close(found, 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third)


def test_running_mean_converges_to_the_mean():
    reference = RunningReference((3, 2), (4, 2), (2,), rate=0.01)
    reference.update(Views(*(torch.full_like(part, 100) for part in REFERENCES)))
    for seed in range(2000):
        reference.update(means(Views(*(view + 3 for view in batch(20, seed=seed)))))
    for part in reference.references:
        # SD of the mean of 20 spots over some 1/.01 batches
        np.testing.assert_allclose(part, 3, atol=4 * np.sqrt(0.01 / 2 / 20))


def test_running_mean_is_missing_before_the_first_batch_and_survives_storage():
    reference = RunningReference((3, 2), (4, 2), (2,))
    assert all(part.isnan().all() for part in reference.references)
    reference.update(means(batch()))
    again = RunningReference((3, 2), (4, 2), (2,))
    again.load_state_dict(reference.state_dict())
    for module in (reference, again):
        module.update(means(batch(seed=10)))
    assert all(torch.equal(*parts) for parts in zip(reference.references, again.references, strict=True))
    # moved by 5e-4, not initialised again
    torch.testing.assert_close(again.own, 0.9995 * batch().own.mean(0) + 0.0005 * batch(seed=10).own.mean(0))
    assert not list(reference.parameters())


def test_running_mean_takes_no_gradient_along():
    reference = RunningReference((3, 2), (4, 2), (2,))
    reference.update(Views(*(part.mean(0).requires_grad_() for part in batch())))
    assert not any(part.requires_grad for part in reference.references)


def test_running_mean_refuses_other_shapes_and_rates():
    reference = RunningReference((3, 2), (4, 2), (2,))
    with pytest.raises(Img2GeneError, match=r"3 problems:\n- The mean of `own` has shape \(5, 3, 2\), its reference"):
        reference.update(batch())
    assert reference.own.isnan().all()
    with pytest.raises(Img2GeneError, match="rate=0: expected a share"):
        RunningReference((1,), (1,), (1,), rate=0)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_exact_reference_does_not_depend_on_the_size_of_batches(size):
    views = Views(*(1000 + view for view in batch(200)))
    reference = ExactReference()
    for parts in zip(*(view.split(size) for view in views), strict=True):
        reference.add(Views(*parts))
    for found, view in zip(reference.references(), views, strict=True):
        assert found.dtype == torch.float32
        expected = view.numpy().astype(np.float64).mean(axis=0)
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_mean_is_exact_where_a_sum_in_single_precision_is_not():
    mean = MeanAccumulator()
    mean.add(torch.full((1, 1), 2.0**24))
    for _ in range(15):
        mean.add(torch.ones(1, 1))
    assert mean.mean().item() == np.float32((2**24 + 15) / 16)
    assert mean.count == 16


def test_mean_of_nothing_and_of_rows_that_differ_is_refused():
    mean = MeanAccumulator()
    with pytest.raises(Img2GeneError, match="There are no rows to average; call `add`"):
        mean.mean()
    mean.add(torch.zeros(0, 2))
    with pytest.raises(Img2GeneError, match="There are no rows to average"):
        mean.mean()
    with pytest.raises(Img2GeneError, match=r"Rows of shape \(3,\) after rows of shape \(2,\)"):
        mean.add(torch.zeros(4, 3))


def test_calibrated_predictions_have_the_training_mean_where_the_reference_is_seen():
    prediction, reference, mean = random(4, 3), random(3, seed=1), torch.tensor([5.0, 6.0, 7.0])
    found = calibrate(prediction, reference, mean).numpy()
    np.testing.assert_allclose(found[2, 1], prediction[2, 1].item() - reference[1].item() + 6, rtol=1e-6)
    torch.testing.assert_close(calibrate(reference.expand(4, 3), reference, mean), mean.expand(4, 3))
    stacked = torch.func.vmap(calibrate, in_dims=(0, 0, None))(prediction[:, None], prediction, mean)
    torch.testing.assert_close(stacked, mean.expand(4, 1, 3))


def test_confounders_are_the_planted_slides_in_units_of_the_features():
    rng = np.random.default_rng(0)
    slides = np.array([[0.0, 1000.0], [1.0, 5000.0], [2.0, 1000.0]])
    members = np.repeat([0, 1, 2], [10, 30, 60])
    # The first feature tells slides 0 and 2 apart only if features are standardised.
    features = slides[members] + rng.normal(size=(100, 2)) * [0.05, 200]
    centroids, frequency = confounder_dictionary(features, 3, seed=0)
    order = np.argsort(frequency)
    expected = np.array([features[members == i].mean(axis=0) for i in range(3)])
    np.testing.assert_allclose(frequency[order], [0.1, 0.3, 0.6], atol=1e-6)
    np.testing.assert_allclose(centroids[order], expected, rtol=1e-4, atol=1e-4)
    assert frequency.sum() == pytest.approx(1)
    again, _ = confounder_dictionary(features, 3, seed=0)
    np.testing.assert_array_equal(centroids, again)


def test_confounders_of_as_many_sections_are_the_sections_themselves():
    features = np.array([[1.0, 7.0], [2.0, 7.0], [5.0, 7.0]])
    centroids, frequency = confounder_dictionary(features, 3, seed=0)
    np.testing.assert_allclose(centroids[np.argsort(centroids[:, 0])], features, rtol=1e-6)
    np.testing.assert_allclose(frequency, 1 / 3)


@pytest.mark.parametrize("number", [0, 5])
def test_more_confounders_than_rows_are_refused(number):
    with pytest.raises(Img2GeneError, match=f"n_confounders={number} for 4 rows of features: expected 1 to as many"):
        confounder_dictionary(np.eye(4), number, seed=0)


def test_confounders_of_missing_features_are_refused():
    with pytest.raises(Img2GeneError, match="1 rows have NaN"):
        confounder_dictionary(np.array([[1.0, np.nan], [0.0, 1.0]]), 1, seed=0)


CENTROIDS, FREQUENCY = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]]), np.array([0.25, 0.75])


def test_backdoor_context_by_hand():
    module, x = Backdoor(4, CENTROIDS, FREQUENCY), random(5, 4)
    w1, w2 = (layer.weight.detach().numpy().astype(float) for layer in (module.query, module.key))
    for spot, found in zip(x.numpy(), module.context(x).detach().numpy(), strict=True):
        logits = np.array([(w1 @ spot) @ (w2 @ c) / 2 for c in CENTROIDS])  # √d = 2
        alpha = np.exp(logits) / np.exp(logits).sum()
        expected = sum(a * p * c for a, p, c in zip(alpha, FREQUENCY, CENTROIDS, strict=True))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_backdoor_joins_the_embedding_and_its_context():
    module, x = Backdoor(4, CENTROIDS, FREQUENCY), random(5, 4)
    weight, bias = module.combine.weight, module.combine.bias
    torch.testing.assert_close(module(x), x @ weight[:, :4].T + module.context(x) @ weight[:, 4:].T + bias)
    assert module(random(2, 7, 4)).shape == (2, 7, 4)


def test_backdoor_trains_its_layers_and_keeps_its_dictionary():
    module = Backdoor(4, CENTROIDS, FREQUENCY)
    module(random(5, 4)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
    assert {name for name, _ in module.named_parameters()} == {
        "query.weight",
        "key.weight",
        "combine.weight",
        "combine.bias",
    }
    assert {"centroids", "frequency"} <= set(module.state_dict())


def test_backdoors_of_an_ensemble_under_vmap_are_those_of_its_members():
    members, x = [Backdoor(4, CENTROIDS, FREQUENCY) for _ in range(3)], random(5, 4)
    state = torch.func.stack_module_state(nn.ModuleList(members))
    call = lambda params, buffers: torch.func.functional_call(members[0], (params, buffers), (x,))
    found = torch.func.vmap(call)(*state)
    torch.testing.assert_close(found, torch.stack([member(x) for member in members]))
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize(
    ("centroids", "frequency", "message"),
    [
        (CENTROIDS, FREQUENCY[:1], r"centroids \(2, 3\) and frequency \(1,\)"),
        (CENTROIDS, np.array([0.5, 0.9]), "frequency: expected shares"),
        (CENTROIDS, np.array([-0.5, 1.5]), "frequency: expected shares"),
        (CENTROIDS[0], FREQUENCY, r"centroids \(3,\)"),
    ],
)
def test_backdoor_refuses_what_is_no_dictionary(centroids, frequency, message):
    with pytest.raises(Img2GeneError, match=message):
        Backdoor(4, centroids, frequency)


def skewed(n=2000, n_genes=6, seed=0):
    return np.random.default_rng(seed).exponential(size=(n, n_genes)) * np.arange(1, n_genes + 1)


def test_weights_have_mean_one_and_are_larger_for_rare_labels():
    labels = skewed()
    weights = density_weights(labels)
    assert weights.shape == labels.shape
    np.testing.assert_allclose(weights.mean(axis=0), 1, rtol=1e-5)
    for values, gene in zip(labels.T, weights.T, strict=True):
        order = np.argsort(values)
        assert gene[order[-20:]].mean() > 5 * gene[order[:200]].mean()


def test_weights_by_hand():
    # Ten bins over 0 … 10: counts 9, 0, 0, 0, 1, … and 4 in the last; the largest label belongs to the last bin.
    labels = np.array([0.0] * 9 + [4.0] + [9.5] * 3 + [10.0])[:, None]
    density = np.array([9.0] * 9 + [1.0] + [4.0] * 4)
    expected = 1 / np.sqrt(density)
    expected /= expected.mean()
    np.testing.assert_allclose(density_weights(labels, n_bins=10, sigma=0).ravel(), expected, rtol=1e-6)


def test_smoothing_spreads_the_labels_by_a_gaussian_and_loses_none_at_the_ends():
    labels = np.array([0.0] * 50 + [5.0] * 8 + [10.0])[:, None]
    bins = np.array([0, 10, 19])
    # Each label counts in its bin's neighbours, and mirrored at both ends of the 20 bins.
    distance = np.abs(np.subtract.outer(np.arange(20), bins))
    mirrored = np.stack([np.arange(20) + bins[0] + 1, np.full(20, 99), 2 * 20 - 1 - np.arange(20) - bins[2]], axis=1)
    kernel = norm.pdf(np.arange(-8, 9), scale=2).sum()
    weight = lambda d: np.where(d <= 8, norm.pdf(d, scale=2), 0) / kernel
    density = ((weight(distance) + weight(mirrored)) @ [50, 8, 1])[np.repeat(bins, [50, 8, 1])]
    expected = 1 / np.sqrt(density)
    expected /= expected.mean()
    np.testing.assert_allclose(density_weights(labels, n_bins=20).ravel(), expected, rtol=1e-5)


def test_weights_are_clipped():
    labels = np.r_[np.zeros(9999), 1.0][:, None]
    free = density_weights(labels, clip=(1e-6, 1e6)).ravel()
    assert free[-1] / free[0] == pytest.approx(np.sqrt(9999), rel=1e-3)
    weights = density_weights(labels, clip=(0.1, 10)).ravel()
    assert weights[-1] == pytest.approx(10, rel=0.02)
    assert weights.mean() == pytest.approx(1, rel=1e-5)


def test_weights_do_not_depend_on_units_order_other_genes_or_chunks(monkeypatch):
    labels = skewed()
    weights = density_weights(labels)
    np.testing.assert_allclose(density_weights(labels * 8 - 16), weights, rtol=1e-6)
    order = np.random.default_rng(1).permutation(len(labels))
    np.testing.assert_allclose(density_weights(labels[order]), weights[order], rtol=1e-6)
    np.testing.assert_array_equal(density_weights(labels[:, [4]]), weights[:, [4]])
    monkeypatch.setattr(imbalance, "_WORKING_SIZE", 4000)
    np.testing.assert_array_equal(density_weights(labels), weights)


@pytest.mark.parametrize("constant", [0.0, -3.7])
def test_constant_genes_have_weight_one(constant):
    labels = np.c_[np.full(50, constant), np.arange(50.0)]
    np.testing.assert_array_equal(density_weights(labels)[:, 0], 1)
    np.testing.assert_array_equal(density_weights(labels[:1]), 1)


@pytest.mark.parametrize(
    ("labels", "params", "message"),
    [
        (np.array([[np.nan, 1.0]]), {}, "1 genes have NaN"),
        (np.zeros((0, 3)), {}, r"labels have shape \(0, 3\)"),
        (np.zeros(3), {}, r"labels have shape \(3,\)"),
        (
            np.zeros((2, 1)),
            {"n_bins": 0, "sigma": -1, "clip": (2, 1)},
            "3 problems:\n- n_bins=0.*\n- sigma=-1.*\n- clip=",
        ),
    ],
)
def test_labels_and_parameters_out_of_range_are_refused(labels, params, message):
    with pytest.raises(Img2GeneError, match=message):
        density_weights(labels, **params)
