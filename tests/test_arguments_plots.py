"""Plots, reports, readers, checks and settings refuse bad arguments by name, before the work."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import img2gene as ig
from img2gene import Img2GeneError, MissingKeyError
from img2gene._files.tables import read_csv, write_csv
from img2gene.settings import Settings


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


SCORES = pd.DataFrame(
    {"model": "ridge", "section": "A", "gene": ["G1", "G2", "G3"], "HVG": [True, False, None], "pcc": [0.1, 0.5, 0.9]}
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ig.pl.scores("scores.csv"), r"scores: expected the table.*tl.evaluate.*got 'scores.csv'"),
        (lambda: ig.pl.scores(SCORES, ax="here"), "ax='here': expected axes of matplotlib"),
        (lambda: ig.pl.scores(SCORES, metric=[]), r"metric=\[\]: expected a name"),
        (lambda: ig.pl.scores(SCORES, metric="section"), "'section' is not a number of the scores"),
        (lambda: ig.pl.scores(SCORES, genes="pcc"), "holds no truth values"),
        (lambda: ig.pl.scores(SCORES.iloc[:0]), "the table has no rows"),
        (lambda: ig.pl.learning_curve(SCORES), "no columns genes, n_spots, n_groups, fraction"),
        (lambda: ig.pl.learning_curve(None), "result: expected the table.*tl.learning_curve"),
        (lambda: ig.pl.cross_validation(SCORES), r"cv: expected.*cross_validate.*pl.scores\(table\).*got a DataFrame"),
        (lambda: ig.pl.gene_correlation({}, cmap="magmaa"), "(?s)tl.gene_correlation.*cmap='magmaa'.*near: magma"),
        (lambda: ig.pl.training("model.img2gene"), "load_model"),
        (lambda: ig.pl.predictability(SCORES, n_labels=-1, panel_size=np.nan), "(?s)n_labels=-1.*panel_size=nan"),
        (lambda: ig.pl.prediction(None, "G"), "Expected a SpatialData, got NoneType"),
        (lambda: ig.pl.patches(None, n=0, n_columns=2.5), "(?s)n=0: .*n_columns=2.5"),
        (
            lambda: ig.report("r.html", SCORES),
            r"(?s)path=.*data: expected a study.*img2gene.report\(sdata, 'report.html'\)",
        ),
        (lambda: ig.testing.check_encoder("no-encoder"), "no-encoder"),
        (lambda: ig.testing.check_encoder(3), "encoder=3: expected the name of an encoder"),
        (lambda: ig.testing.check_predictor(3), "make=3"),
        (lambda: ig.testing.assert_models_equal("a", "b"), "(?s)one='a'.*other='b'"),
        (lambda: ig.datasets.synthetic_cohort(n_patients=[], seed=-1, mpp=10**400), "(?s)n_patients=.*seed=-1.*mpp=1"),
    ],
)
def test_messages_name_the_culprit_and_the_right_call(call, message):
    with pytest.raises(Img2GeneError, match=message):
        call()


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        (dict, "`dict` has no method `fit`"),
        (lambda: None, "`NoneType` has no method `fit`"),
        (
            type(
                "Bare", (), {name: lambda self: None for name in ("fit", "predict", "state", "from_state", "summary")}
            ),
            "name",
        ),
        (lambda needed: needed, "cannot be made without arguments"),
    ],
)
def test_classes_that_are_no_predictor_are_described(predictor, message):
    with pytest.raises(AssertionError, match=message):
        ig.testing.check_predictor(predictor)


def test_gene_groups_with_unknown_members_are_drawn():
    (ax,) = ig.pl.scores(SCORES, genes="HVG").axes
    assert ax.get_xticklabels()[0].get_text().startswith("ridge\nmean 0.100")


def test_a_report_never_writes_beside_a_folder_or_where_it_cannot(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    folder.mkdir()
    read = []
    monkeypatch.setattr("img2gene._report.page._inputs", lambda data, cv: (read.append(data), None))
    for path in (folder, tmp_path / "absent" / "page.html", "/proc/page.html", tmp_path / ("x" * 300)):
        with pytest.raises(Img2GeneError, match="folder|Folder|no file can be written"):
            ig.report(None, path)
    assert list(tmp_path.iterdir()) == [folder]


def test_settings_refuse_misspelt_names_and_unusable_values(tmp_path, monkeypatch):
    settings = Settings()
    for name, value in (
        ("batch_size", 0),
        ("num_workers", float("nan")),
        ("amp", "yes"),
        ("seed", -1),
        ("device", None),
        ("device", "cudax"),
        ("device", 3),
        ("cache_dir", 3),
        ("cache_dir", ""),
        ("batch_size", None),
        ("seed", False),
        ("progress", 1),
    ):
        with pytest.raises(Img2GeneError, match=name):
            setattr(settings, name, value)
    for value in (False, None):
        with pytest.raises(Img2GeneError, match="no `progres` .*progress"):
            settings.progres = value
    assert settings == Settings()
    settings.device = "cpu"
    settings.batch_size, settings.cache_dir = np.int64(4), str(tmp_path)
    assert (settings.batch_size, settings.cache_dir) == (4, tmp_path)
    monkeypatch.chdir(tmp_path)
    settings.cache_dir = Path("here")
    assert settings.cache_dir == tmp_path / "here"
    (tmp_path / "file").touch()
    with pytest.raises(Img2GeneError, match="is a file; expected a folder"):
        settings.cache_dir = tmp_path / "file"
    assert Settings(num_workers=np.int8(2)).num_workers == 2


@pytest.mark.parametrize("kind", [object, "string", "category"])
def test_spreadsheets_run_nothing_and_names_come_back(tmp_path, kind):
    names = ["=HYPERLINK(1)", "+A1", "-B", "@SUM", "'=x", "CD3'", "G1"]
    frame = pd.DataFrame({"gene": pd.Series(names, dtype=kind), "pcc": np.linspace(-1, 1, 7), "=group": True})
    write_csv(frame, tmp_path / "scores.csv")
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert not any(cell.startswith(("=", "+", "@")) for line in lines for cell in line.split(","))
    assert lines[1].startswith("'=HYPERLINK(1),-1.0")
    restored = read_csv(tmp_path / "scores.csv")
    assert restored.columns.tolist() == frame.columns.tolist()
    assert restored["gene"].tolist() == names
    np.testing.assert_allclose(restored["pcc"], frame["pcc"])
    with pytest.raises(Img2GeneError, match="expected a file in a folder that exists"):
        write_csv(frame, tmp_path)


@pytest.mark.parametrize("index", [None, [[1]], {}, object(), b"x", [1.5], 10**400, "zz", [10**6], slice("a", None)])
def test_rows_that_do_not_exist_are_refused(study, index):
    with pytest.raises(Img2GeneError):
        ig.get.patches(study, index)


def test_numpy_scalars_and_series_choose_rows(study):
    mask = pd.Series(np.arange(study["table"].n_obs) == 3)
    np.testing.assert_array_equal(ig.get.patches(study, mask), ig.get.patches(study, np.int64(3)))
    with pytest.raises(MissingKeyError):
        ig.get.model(study, "absent")
