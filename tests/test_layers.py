"""Layers: equal to a plain implementation, indifferent to what must not matter, and the same in an ensemble as alone."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from img2gene.models.cmrcnet.network import Architecture, CMRCNetNetwork
from img2gene.models.networks.debiasing import Backdoor
from img2gene.models.networks.ensemble import Ensemble, outline, stacked_shapes
from img2gene.models.networks.layers import (
    Attention,
    CrossModalFusion,
    FeedForward,
    Linear,
    Neighborhood,
    PathwayAttention,
    ProjectionHead,
    RelativePosition,
    SectionSummary,
    SelfNormalizing,
    SpotEncoder,
    mask_elements,
)

DIM, HEADS = 8, 2


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def made(build, seed=0):
    """A layer whose initial weights do not depend on the tests before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


def plain_attention(layer, queries, keys, bias=None):
    """One head and one query after the other."""
    q, k, v = layer.query(queries), layer.key(keys), layer.value(keys)
    width = q.shape[-1] // layer.heads
    out = torch.zeros_like(q)
    for b in range(len(q)):
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(q.shape[1]):
                logits = k[b, :, part] @ q[b, i, part] / width**0.5
                if bias is not None:
                    logits = logits + bias[b, head, i]
                out[b, i, part] = logits.softmax(dim=0) @ v[b, :, part]
    return layer.out(out)


@pytest.mark.parametrize("n_queries", [1, 3, 4, 6])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_equals_a_plain_implementation(n_queries, biased):
    layer, queries, keys = made(lambda: Attention(DIM, HEADS)), normal(2, n_queries, DIM), normal(2, 4, DIM, seed=1)
    bias = normal(2, HEADS, n_queries, 4, seed=2) if biased else None
    close(layer(queries, keys, bias), plain_attention(layer, queries, keys, bias))


@pytest.mark.parametrize("n_queries", [1, 9])
def test_attention_does_not_depend_on_the_order_of_keys(n_queries):
    layer, queries, keys = made(lambda: Attention(DIM, HEADS)), normal(3, n_queries, DIM), normal(3, 5, DIM, seed=1)
    order = torch.tensor([3, 0, 4, 1, 2])
    close(layer(queries, keys[:, order]), layer(queries, keys))
    # the values do matter
    assert (layer(queries, keys + keys[:, :1]) - layer(queries, keys)).abs().max() > 0.01


def test_a_linear_layer_equals_that_of_torch():
    layer, x = made(lambda: Linear(6, 3)), normal(4, 5, 6)
    close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    plain = nn.Linear(6, 3)
    plain.load_state_dict(layer.state_dict())
    close(layer(x[0, 0]), plain(x[0, 0]))


def test_relative_positions_see_offsets_alone():
    layer, places = made(lambda: RelativePosition(HEADS)), 300 * normal(2, 5, 2)

    def bias(where):
        return layer(where.unsqueeze(-3) - where.unsqueeze(-2))

    close(bias(places + torch.tensor([1e3, -5e2])), bias(places), atol=1e-3)
    assert (bias(2 * places) - bias(places)).abs().max() > 0.01
    assert bias(places).shape == (2, HEADS, 5, 5)


def test_a_neighbourhood_is_a_set_of_spots_at_their_places():
    layer, hidden, offsets = made(lambda: Neighborhood(DIM, HEADS)), normal(3, 6, DIM), 100 * normal(3, 6, 2, seed=1)
    found = layer(hidden, layer.project(hidden), offsets)
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    close(layer(hidden[:, order], layer.project(hidden[:, order]), offsets[:, order]), found[:, order])
    close(layer(hidden, layer.project(hidden), offsets + 250), found, atol=1e-4)
    assert (layer(hidden, layer.project(hidden), offsets[:, order]) - found).abs().max() > 1e-3


def test_a_section_is_summed_up_whatever_the_order_of_its_spots():
    layer, spots = made(lambda: SectionSummary(DIM, n_latents=3, heads=HEADS)), normal(20, DIM)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    close(layer.latents_of(spots[order]), layer.latents_of(spots))
    # a section twice as dense looks the same
    close(layer.latents_of(torch.cat([spots, spots])), layer.latents_of(spots))
    latents, around = layer.latents_of(spots), normal(20, 4, DIM, seed=1)
    close(layer(spots, around.flip(1), latents.flip(0)), layer(spots, around, latents))
    close(layer(spots[order], around[order], latents), layer(spots, around, latents)[order])


def test_what_pathways_add_sums_up_to_their_context():
    layer, embedding, scores = made(lambda: PathwayAttention(DIM, 5)), normal(4, DIM), normal(4, 5, seed=1)
    close(layer.terms(embedding, scores).sum(dim=1), layer(embedding, scores))
    assert not layer(embedding, torch.zeros(4, 5)).any()


def test_pathway_attention_equals_its_equation():
    layer, z, scores = made(lambda: PathwayAttention(DIM, 5)), normal(4, DIM), normal(4, 5, seed=1)
    expected = []
    for spot, row in zip(z, scores, strict=True):
        tokens = layer.tokens * row[:, None] * 5**0.5
        shares = (layer.key(tokens) @ layer.query(spot) / DIM**0.5).softmax(dim=0)
        expected.append(shares @ layer.value(tokens))
    close(layer(z, scores), torch.stack(expected))


LAYERS = {
    "linear": (lambda: Linear(DIM, 3), [(5, 4, DIM)]),
    "few queries": (lambda: Attention(DIM, HEADS), [(5, 1, DIM), (5, 4, DIM)]),
    "many queries": (lambda: Attention(DIM, HEADS), [(5, 4, DIM), (5, 3, DIM)]),
    "position": (lambda: RelativePosition(HEADS), [(5, 3, 3, 2)]),
    "feed forward": (lambda: FeedForward(DIM), [(5, DIM)]),
    "encoder": (lambda: SpotEncoder(6, DIM), [(5, 6)]),
    "neighbourhood": (lambda: Neighborhood(DIM, HEADS), [(5, 4, DIM), (5, 4, 3 * DIM), (5, 4, 2)]),
    "section": (lambda: SectionSummary(DIM, 3, HEADS), [(5, DIM), (5, 4, DIM), (3, DIM)]),
    "pathways": (lambda: PathwayAttention(DIM, 4), [(5, DIM), (5, 4)]),
    "projection": (lambda: ProjectionHead(6, DIM), [(5, 6)]),
    "self-normalising": (lambda: SelfNormalizing(6, DIM), [(5, 6)]),
    "fusion": (lambda: CrossModalFusion(DIM, HEADS), [(5, 3, DIM), (5, 4, DIM)]),
    "backdoor": (lambda: Backdoor(DIM, torch.ones(2, 3), torch.tensor([0.5, 0.5])), [(5, DIM)]),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("own_inputs", [False, True])
def test_layers_side_by_side_equal_a_loop(name, own_inputs):
    build, shapes = LAYERS[name]
    members = [made(build, seed) for seed in range(3)]
    inputs = [normal(*((3,) if own_inputs else ()), *shape, seed=i) for i, shape in enumerate(shapes)]

    def one(parameters, buffers, *values):
        return functional_call(members[0], (parameters, buffers), values)

    found = vmap(one, in_dims=(0, 0, *[0 if own_inputs else None] * len(inputs)))(*stack_module_state(members), *inputs)
    for number, member in enumerate(members):
        close(found[number], member(*(x[number] if own_inputs else x for x in inputs)))


def network():
    return nn.Sequential(Linear(6, DIM), nn.BatchNorm1d(DIM, track_running_stats=True).eval(), Linear(DIM, 2))


def test_members_are_the_same_whatever_their_number():
    few, many = (Ensemble(network, n, seed=3).state_dict() for n in (2, 4))
    for name, values in few.items():
        assert torch.equal(values, many[name][:2])
    shifted = Ensemble(network, 1, seed=4).state_dict()
    assert torch.equal(shifted["0/weight"][0], many["0/weight"][1])
    assert not torch.equal(many["0/weight"][0], many["0/weight"][1])


def test_an_ensemble_equals_its_members_alone():
    ensemble, x = Ensemble(network, 3, seed=0).eval(), normal(5, 6)
    found = ensemble(x)
    for number in range(3):
        alone = made(network, number).eval()
        close(found[number], alone(x))
        close(ensemble.call_member(number, lambda net, values: net(values), x), alone(x))
    assert ensemble.template.training is False


def test_paired_inputs_go_to_their_member():
    ensemble, x = Ensemble(network, 2, seed=0).eval(), normal(2, 5, 6)
    found = ensemble.call(lambda net, scale, own: scale * net(own), torch.tensor(2.0), paired=(x,))
    for number in range(2):
        close(found[number], 2 * ensemble(x[number])[number])


def test_an_ensemble_of_one_is_the_network():
    close(Ensemble(network, 1, seed=7).eval()(normal(5, 6))[0], made(network, 7).eval()(normal(5, 6)))


def test_members_learn_from_their_own_loss_alone():
    ensemble = Ensemble(lambda: Linear(6, 1), 2, seed=0)
    losses = ensemble(normal(5, 6)).square().mean(dim=(1, 2))
    losses[0].backward()
    gradient = ensemble.get_parameter("weight").grad
    assert gradient[0].abs().max() > 0
    assert not gradient[1].any()


def test_members_drop_different_units_and_only_in_training():
    ensemble = Ensemble(lambda: FeedForward(DIM, dropout=0.5), 2, seed=0)
    ensemble.load_state_dict({name: values[:1].expand_as(values) for name, values in ensemble.state_dict().items()})
    x = normal(50, DIM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one, two = ensemble.train()(x)
    assert not torch.equal(one, two)
    assert torch.equal(*ensemble.eval()(x))


def test_building_an_ensemble_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Ensemble(network, 2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def stored(n_models=2):
    """An ensemble, its network without values, and its arrays."""
    ensemble = Ensemble(network, n_models, seed=0).eval()
    arrays = {name: value.numpy() for name, value in ensemble.state_dict().items()}
    return ensemble, outline(lambda shape: network().to("meta"), dict), arrays


def test_a_restored_ensemble_is_the_stored_one_and_draws_nothing():
    ensemble, template, arrays = stored()
    for values in arrays.values():
        values.flags.writeable = False
    before = torch.get_rng_state()
    restored = Ensemble.restored(template, arrays, 2).eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: value.shape for name, value in arrays.items()} == stacked_shapes(template, 2)
    x = normal(5, 6)
    assert torch.equal(restored(x), ensemble(x))
    close(restored.call_member(1, lambda net, values: net(values), x), ensemble(x)[1])
    assert all(value.requires_grad for value in restored.parameters())
    restored(x).sum().backward()
    assert restored.get_parameter("0/weight").grad.abs().max() > 0


def test_restored_ensembles_share_neither_weights_nor_network():
    _, template, arrays = stored()
    one, other = Ensemble.restored(template, arrays, 2), Ensemble.restored(template, arrays, 2).eval()
    expected = other(normal(5, 6))
    with torch.no_grad():
        one.get_parameter("0/weight").zero_()
    assert one.train().template is not other.template
    assert other.template.training is False
    assert torch.equal(other(normal(5, 6)), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("2/bias"),
        lambda arrays: arrays.update(more=arrays["2/bias"]),
        lambda arrays: arrays.update({"2/bias": arrays["2/bias"][:1]}),
        lambda arrays: arrays.update({"0/weight": arrays["0/weight"].swapaxes(1, 2)}),
    ],
)
def test_arrays_of_another_network_restore_none(change):
    _, template, arrays = stored()
    change(arrays)
    with pytest.raises(RuntimeError, match=r"2/bias|more|0/weight"):
        Ensemble.restored(template, arrays, 2)


def test_an_outline_takes_only_sizes_that_a_network_takes():
    sizes = {"n_components": 6, "n_genes": 5, "dim": 8, "heads": 2}
    shapes = stacked_shapes(outline(CMRCNetNetwork, Architecture, **sizes), 3)
    real = CMRCNetNetwork(Architecture(**sizes)).state_dict()
    assert shapes == {name.replace(".", "/"): (3, *value.shape) for name, value in real.items()}
    assert outline(CMRCNetNetwork, Architecture, **sizes) is outline(CMRCNetNetwork, Architecture, **sizes)
    for wrong in (8.0, "8", None, [8]):
        with pytest.raises(TypeError):
            outline(CMRCNetNetwork, Architecture, **{**sizes, "dim": wrong})


def test_masking_sets_a_share_of_elements_to_zero_and_leaves_the_others_alone():
    x = torch.full((40, 50, 10), 3.0)
    masked = made(lambda: mask_elements(x, 0.3))
    assert set(masked.unique().tolist()) == {0.0, 3.0}
    assert (masked == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    # Elements, not whole tokens or whole features.
    assert 0 < (masked == 0).float().mean(dim=-1).std() and 0 < (masked == 0).float().mean(dim=0).std()
    torch.testing.assert_close(mask_elements(x, 0.0), x)


def test_a_projection_head_equals_its_equation():
    head, x = made(lambda: ProjectionHead(5, 4)), normal(3, 5)
    hidden = x @ head.linear.weight.T + head.linear.bias
    expected = nn.functional.gelu(hidden) @ head.out.weight.T + head.out.bias + hidden
    expected = (expected - expected.mean(1, keepdim=True)) / (
        expected.var(1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    close(head(x), expected)


def test_self_normalising_layers_keep_mean_and_variance():
    x = normal(4000, 200)
    layers = made(lambda: nn.Sequential(*(SelfNormalizing(200, 200, dropout=0.1) for _ in range(8)))).train()
    out = made(lambda: layers(x))
    assert out.mean().abs() < 0.1
    assert out.var().item() == pytest.approx(1, abs=0.15)


def test_fusion_looks_at_the_other_modality_whatever_the_order_of_its_tokens():
    fusion, tokens = made(lambda: CrossModalFusion(DIM, HEADS)), normal(5, 3, DIM)
    context = normal(5, 4, DIM, seed=1)
    found = fusion(tokens, context)
    close(fusion(tokens, context[:, [2, 0, 3, 1]]), found)
    close(fusion(tokens[:, [1, 2, 0]], context), found[:, [1, 2, 0]])
    assert not torch.allclose(fusion(tokens, context + normal(5, 4, DIM, seed=2)), found, atol=1e-3)
