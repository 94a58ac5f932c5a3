"""Results are the same whatever the order of spots, sections and genes in the tables."""

import numpy as np
import pandas as pd
import pytest

import img2gene as ig
from img2gene.models import registry

QUICK = {
    "img2gene": {"max_epochs": 2, "n_models": 1, "n_validations": 1, "dim": 16, "n_components": 4, "heads": 2},
    "cmrcnet": {"max_epochs": 2, "n_models": 1, "n_validations": 1, "dim": 16, "n_components": 4, "heads": 2},
    "bleep": {"max_epochs": 2, "n_models": 1, "n_validations": 1, "dim": 16, "n_components": 4, "heads": 2},
}
# A section that was not trained on has no coordinates to look up.
COORDINATES = "coordinates"
IMAGE_MODELS = ("bleep", "cmrcnet", "img2gene", "knn", "mean", "ridge", "ridge-plain")


def shuffled(sdata, copy_of, seed):
    """The same study with its spots (and so its sections) and genes in another order."""
    rng = np.random.default_rng(seed)
    other = copy_of(sdata)
    table = other["table"]
    other.tables["table"] = table[rng.permutation(table.n_obs), rng.permutation(table.n_vars)].copy()
    return other


def by_name(table, layer):
    values = pd.DataFrame(np.asarray(table.layers[layer]), index=table.obs_names, columns=table.var_names)
    return values.sort_index().sort_index(axis=1)


def test_every_registered_model_is_looked_at():
    assert {*IMAGE_MODELS, COORDINATES} == set(registry._BUILT_IN)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_fit_predict_and_scores_do_not_depend_on_the_order_of_a_table(shared_study, copy_of, name):
    studies = [copy_of(shared_study), shuffled(shared_study, copy_of, seed=1)]
    scores = []
    for sdata in studies:
        ig.tl.fit(sdata, name, validate_on=["C"], **QUICK.get(name, {}))
        ig.tl.predict(sdata)
        scores.append(ig.tl.evaluate(sdata, n_permutations=3))
    one, other = (sdata["table"] for sdata in studies)
    for layer in ("img2gene", "img2gene_std", "img2gene_lower", "img2gene_upper"):
        if layer in one.layers:
            np.testing.assert_allclose(by_name(one, layer), by_name(other, layer), atol=1e-5)
    if "img2gene_ood" in one.obs:
        pd.testing.assert_series_equal(
            one.obs["img2gene_ood"].sort_index(),
            other.obs["img2gene_ood"].sort_index(),
            atol=1e-5,
            rtol=0,
            check_names=False,
        )
    keys = ["model", "section", "gene"]
    frames = [frame.set_index(keys).sort_index() for frame in scores]
    numbers = frames[0].select_dtypes("number").columns
    pd.testing.assert_frame_equal(frames[0][numbers], frames[1][numbers], atol=1e-5, rtol=0)


def test_coordinates_do_not_depend_on_the_order_of_a_table(shared_study, copy_of):
    studies = [copy_of(shared_study), shuffled(shared_study, copy_of, seed=1)]
    for sdata in studies:
        obs = sdata["table"].obs
        obs["half"] = np.where(obs.index.str[-1].isin(list("02468")), "even", "odd")
        ig.tl.fit(sdata, COORDINATES, groups="half", validate_on=["odd"], allow_leakage=True)
        ig.tl.predict(sdata)
    one, other = (sdata["table"] for sdata in studies)
    np.testing.assert_allclose(by_name(one, "img2gene"), by_name(other, "img2gene"), atol=1e-5)


def test_genes_and_pathways_are_chosen_alike(shared_study, copy_of):
    sets = {f"set{i}": [f"G{j:02d}" for j in range(i, i + 5)] for i in range(6)}
    studies = [copy_of(shared_study), shuffled(shared_study, copy_of, seed=2)]
    for sdata in studies:
        ig.pp.score_pathways(sdata, sets, n_top=3)
    one, other = (ig.get.pathways(sdata) for sdata in studies)
    assert one["pathway"].tolist() == other["pathway"].tolist()
    numbers = one.select_dtypes("number").columns
    pd.testing.assert_frame_equal(one[numbers], other[numbers], atol=1e-5, rtol=0)
    for by in ("mean", "variable", "spatial", "highly_variable"):
        panels = []
        for sdata in studies:
            ig.pp.select_genes(sdata, 5, by=by, min_detection=0)
            panels.append(set(sdata["table"].var_names[sdata["table"].var["panel"]]))
        assert panels[0] == panels[1]


def test_leaks_curves_and_predictability_do_not_depend_on_the_order_of_a_table(shared_study, copy_of):
    studies = [copy_of(shared_study), shuffled(shared_study, copy_of, seed=3)]
    leaks = [ig.tl.check_leaks(sdata, groups="section").sort_values("message") for sdata in studies]
    pd.testing.assert_frame_equal(*(frame.reset_index(drop=True) for frame in leaks), atol=1e-5)
    curves = [
        ig.tl.learning_curve(sdata, "ridge", by="spots", fractions=(0.5,), n_repeats=1).drop(columns="seconds")
        for sdata in studies
    ]
    pd.testing.assert_frame_equal(*curves, atol=1e-5, rtol=0)
    results = []
    for sdata in studies:
        ig.tl.fit(sdata, "ridge", validate_on=["C"])
        ig.tl.predict(sdata)
        results.append(ig.tl.predictability(sdata, n_permutations=20).sort_index())
    numbers = ["pcc", "pcc_ceiling", "pcc_pvalue", "pcc_fdr"]
    pd.testing.assert_frame_equal(results[0][numbers], results[1][numbers], atol=1e-5, rtol=0)
