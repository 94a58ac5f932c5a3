"""Predictions are neither read as counts, nor drawn as those of a model that did not make them."""

import pytest

import img2gene as ig
from img2gene._errors import Img2GeneError


@pytest.fixture
def predicted(trained_study, copy_of):
    """A trained study whose predictions are in a table of their own, too."""
    sdata = copy_of(trained_study)
    whole = sdata["table"]
    model = ig.get.model(sdata)
    sdata.tables["table"] = whole[:, whole.var_names[1:]].copy()
    ig.tl.predict(sdata, model, key_added="apart")
    assert "apart" in sdata.tables
    return sdata


CALLS = {
    "fit": lambda s: ig.tl.fit(s, "ridge", validate_on=["C"], table_key="apart"),
    "evaluate": lambda s: ig.tl.evaluate(s, key="apart", table_key="apart"),
    "prediction": lambda s: ig.pl.prediction(s, s["apart"].var_names[0], key="apart", table_key="apart"),
    "calibration": lambda s: ig.pl.calibration(s, key="apart", table_key="apart"),
    "report": lambda s: ig.report(s, "page.html", key="apart", table_key="apart"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_table_of_predictions_is_not_read_as_counts(predicted, name):
    with pytest.raises(Img2GeneError, match=r"`sdata\['apart'\]` holds predictions, not measured counts.*key='apart'"):
        CALLS[name](predicted)


def test_predictions_of_a_table_of_their_own_are_drawn_by_their_key(predicted):
    gene = predicted["apart"].var_names[-1]
    titles = [ax.get_title() for ax in ig.pl.prediction(predicted, gene, key="apart", sections="C1").axes]
    assert any("measured" in title for title in titles)


@pytest.fixture
def refitted(trained_study, copy_of):
    """A study with the predictions of a model, and another model under the same name."""
    sdata = copy_of(trained_study)
    ig.tl.predict(sdata)
    ig.tl.fit(sdata, "ridge", validate_on=["B"])
    return sdata


def test_plots_refuse_predictions_of_an_earlier_model(refitted):
    gene = refitted["table"].var_names[0]
    fingerprint = ig.get.model(refitted).fingerprint
    for draw in (
        lambda: ig.pl.prediction(refitted, gene),
        lambda: ig.pl.calibration(refitted),
        lambda: ig.pl.out_of_distribution(refitted),
    ):
        with pytest.raises(Img2GeneError, match=f"were made by another model .*`ridge` {fingerprint[:8]}"):
            draw()
    ig.tl.predict(refitted)
    ig.pl.prediction(refitted, gene, sections="B1")


def test_a_report_leaves_out_distances_from_the_training_data_of_an_earlier_model(refitted, tmp_path):
    page = ig.report(refitted, tmp_path / "old.html").read_text()
    assert "lie beyond the 99th percentile" not in page
    ig.tl.predict(refitted)
    assert "lie beyond the 99th percentile" in ig.report(refitted, tmp_path / "new.html").read_text()
