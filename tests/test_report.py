"""The page says what was computed, marks what is not honest, injects nothing, and shows in a real browser."""

import dataclasses
import importlib.resources
import os
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import img2gene as ig
from img2gene import _report
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene._report.blocks import interval, number, table
from img2gene.tl import CrossValidation

CHAPTERS = [
    *("data", "splits", "scores", "genes", "calibration", "structure", "ood", "predictability"),
    *("warnings", "settings"),
]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Text by chapter, tags, and every address that the page names."""

    def __init__(self, source):
        super().__init__()
        self.source, self.stack, self.chapter = source, [], "top"
        self.text, self.tags, self.addresses, self.blocks = {"top": ""}, [], [], []
        self.feed(source)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "section":
            self.chapter = found["id"]
            self.text[self.chapter] = ""
        if tag in ("figure", "table"):
            self.blocks.append([self.chapter, tag, ""])
        self.addresses += [found[name] for name in ("src", "href", "data", "srcset", "action") if name in found]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text[self.chapter] += data
        if {"figure", "table"} & set(self.stack):
            self.blocks[-1][2] += data


@pytest.fixture(scope="module")
def cv(shared_study):
    return ig.tl.cross_validate(shared_study, "ridge", n_permutations=2, keep_predictions=True)


@pytest.fixture(scope="module")
def full(cv, trained_study, copy_of):
    """A study and a cross-validation with everything that there can be."""
    study = copy_of(trained_study)
    study["table"].obs["img2gene_ood"] = np.linspace(0, 98, study["table"].n_obs)
    ig.tl.predictability(study, n_permutations=1)
    study["table"].var["pcc_ceiling"] = 0.9
    kept = cv.predictions["ridge"].copy()
    kept.layers["std"] = np.full(kept.shape, 0.5)
    kept.layers["lower"], kept.layers["upper"] = kept.X - 1, kept.X + 1
    kept.obs["ood"] = 50.0
    return study, dataclasses.replace(cv, predictions={"ridge": kept})


@pytest.fixture(scope="module")
def written(full, tmp_path_factory):
    """The page about both."""
    return ig.report(full[0], tmp_path_factory.mktemp("report") / "page.html", cv=full[1])


@pytest.fixture
def page(tmp_path):
    def make(data, **asked):
        asked = {"n_genes": 1, "n_sections": 1, **asked}
        return Page(ig.report(data, tmp_path / "page.html", **asked).read_text(encoding="utf-8"))

    return make


@pytest.fixture(scope="module")
def bare(cv):
    """The cross-validation without predictions."""
    return dataclasses.replace(cv, predictions={})


def changed(cv, **replaced):
    """The cross-validation with other values in the columns of its scores."""
    return dataclasses.replace(cv, scores=cv.scores.assign(**replaced))


def test_page_has_every_chapter_and_asks_for_nothing_outside(full, bare, written, page):
    for found in (Page(written.read_text(encoding="utf-8")), page(full[0]), page(bare)):
        assert list(found.text) == ["top", *CHAPTERS]
        assert all(text.strip() for text in found.text.values())
        assert all(address.startswith(("#", "data:")) for address in found.addresses)
        assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
        style = found.source.split("<style>")[1].split("</style>")[0]
        assert not re.search(r"url\(|@import|https?:", style)
        assert "default-src 'none'" in found.source


def test_scores_on_the_page_are_those_of_the_result(bare, page):
    cv, found = bare, page(bare)
    text = found.text
    for group in cv.groups:
        for row in cv.summary(group).to_dict("records"):
            assert interval(row["pcc"], row["low"], row["high"]) in text["scores"]
    row = cv.compare("ridge-plain").set_index("model").loc["ridge"]
    assert f"higher in {row['n_better']} of 3 patients" in text["top"]
    best = cv.genes("ridge").index[0]
    assert re.search(r"Best genes</caption>.*?<td[^>]*>([^<]*)", found.source, flags=re.DOTALL).group(1) == best


def test_study_is_scored_on_held_out_sections_only_and_not_changed(trained_study, snapshot, page):
    study = trained_study
    before = snapshot(study["table"])
    found = page(study)
    assert snapshot(study["table"]) == before
    scores = ig.tl.evaluate(study, inplace=False)
    mean = ig.tl.summarize(scores).query("model == 'ridge' and genes == 'all'")["pcc"].iloc[0]
    assert f"“ridge”: mean PCC {number(mean)} over 1 patient. One patient gives no interval." in found.text["top"]
    assert "C1" in found.text["splits"]
    assert "img2gene.tl.cross_validate(sdata" in found.text["scores"]


def test_what_is_missing_is_named_with_the_call_that_adds_it(shared_study, bare, page):
    untrained = page(shared_study)
    assert "img2gene.tl.fit(sdata" in untrained.text["scores"]
    assert "img2gene.tl.predictability(sdata)" in untrained.text["predictability"]
    kept_nothing = page(bare)
    assert "keep_predictions=['ridge']" in kept_nothing.text["genes"]
    assert "keep_predictions=True" in kept_nothing.text["structure"]
    for name in ("calibration", "ood", "predictability"):
        assert "Not in this report" in kept_nothing.text[name]
    assert "img2gene.report(sdata, path, cv=result)" in kept_nothing.text["data"]


@pytest.mark.parametrize(
    ("scope", "leakage", "smooth", "expected"),
    [
        ("within patient", True, 0, "within-patient estimate"),
        ("patients unknown", pd.NA, 0, "patients unknown"),
        ("between patients", True, 0, "leakage: patients trained on"),
        ("between patients", False, 8, "labels smoothed"),
    ],
)
def test_dishonest_scores_are_marked_at_the_top_and_wherever_scores_are(cv, page, scope, leakage, smooth, expected):
    marked = changed(cv, leakage=pd.array([leakage] * len(cv.scores), dtype="boolean"))
    marked = dataclasses.replace(marked, scope=scope, settings={**cv.settings, "smooth": smooth})
    found = page(marked)
    assert expected in found.text["top"]
    scored = [text for chapter, _, text in found.blocks if chapter in ("scores", "genes", "structure")]
    assert len(scored) > 10
    assert all(expected in text for text in scored)


def test_honest_scores_are_not_marked(bare, page):
    assert 'class="badge"' not in page(bare).source


def test_without_an_honest_split_there_is_no_score(study, page):
    ig.tl.fit(study, "ridge")
    ig.tl.predict(study)
    found = page(study)
    assert "no honest score is possible" in found.text["top"]
    assert "img2gene.tl.cross_validate" in found.text["scores"]
    assert [block for block in found.blocks if block[0] in ("scores", "genes")] == []
    assert "“ridge” was trained on 196 spots" in found.text["splits"]


def test_sections_with_an_image_only_are_drawn_without_scores(trained_study, copy_of, page):
    study = copy_of(trained_study)
    rows = (study["table"].obs["section"] == "C1").to_numpy()
    study["table"].X = study["table"].X.multiply(~rows[:, None]).tocsr()
    study["table"].obs["library_size"] = np.where(rows, 0, study["table"].obs["library_size"])
    found = page(study, genes="G00")
    assert "1 with an image only" in found.text["top"]
    maps = [text for chapter, tag, text in found.blocks if (chapter, tag) == ("genes", "figure")]
    assert len(maps) == 1
    assert "no score" in maps[0] and "G00, C1" in maps[0]


def test_tiles_are_drawn_from_a_table_of_their_own(trained_study, copy_of, page):
    study = copy_of(trained_study)
    ig.pp.tile_slide(study, "A1_image", tile_um=60)
    ig.pp.extract_patches(study, patch_um=60, patch_px=32, table_key="slide_tiles")
    ig.pp.embed_patches(study, "tiny", table_key="slide_tiles")
    model = ig.get.model(study)
    ig.tl.predict(study, model, table_key="slide_tiles", key_added="on_tiles")
    found = page(study, table_key="slide_tiles", key="on_tiles", model=model)
    assert "No section was measured" in found.text["top"]
    assert [tag for chapter, tag, _ in found.blocks if chapter == "genes"] == ["figure"]
    assert "Nothing was noticed" in found.text["warnings"]


def test_ceilings_of_another_prediction_are_not_shown(trained_study, copy_of, page):
    study = copy_of(trained_study)
    ig.tl.predictability(study, n_permutations=1)
    study["table"].var["pcc_ceiling"] = 0.9
    assert "a perfect model to 0.900 (median" in page(study).text["predictability"]
    ig.tl.fit(study, "knn", validate_on=["C"])
    ig.tl.predict(study)
    assert "Not in this report" in page(study).text["predictability"]


def test_coverage_is_the_share_of_labels_between_the_bounds(cv, page):
    kept = cv.predictions["ridge"].copy()
    measured = kept.layers["measured"].astype(float)
    inside = np.arange(measured.size).reshape(measured.shape) % 4 != 0
    kept.layers["lower"] = np.where(inside, measured - 1, measured + 1)
    kept.layers["upper"] = measured + 2
    found = page(dataclasses.replace(cv, predictions={"ridge": kept}))
    assert "Nominal 90% intervals cover 75.0% of the measured values" in found.text["calibration"]
    assert "too narrow" in found.text["calibration"]


def test_far_sections_are_warned_of_with_their_share(cv, page):
    kept = cv.predictions["ridge"].copy()
    of_section = kept.obs["section"] == "B1"
    kept.obs["ood"] = np.where(of_section & (np.arange(len(of_section)) % 2 == 0), 99.9, 10.0)
    share = (kept.obs["ood"][of_section] > 99).mean()
    found = page(dataclasses.replace(cv, predictions={"ridge": kept}))
    assert f"B1 ({share:.0%})" in found.text["warnings"]
    assert f"{share:.1%}" in found.text["ood"]
    assert "A1 (" not in found.text["warnings"]


@pytest.mark.parametrize(
    ("metric", "ends", "expected"),
    [
        ("pcc", ("Best", "Worst"), ("G02", "G01")),
        ("mse", ("Best", "Worst"), ("G01", "G02")),
        ("moran", ("Best", "Worst"), ("G00", "G02")),
        ("coverage", ("Best", "Worst"), ("G02", "G01")),
        ("error_correlation", ("Best", "Worst"), ("G02", "G01")),
    ],
)
def test_genes_are_ranked_by_what_is_better(bare, page, metric, ends, expected):
    kept = dataclasses.replace(bare, scores=bare.scores[bare.scores["gene"].isin(["G00", "G01", "G02"])])
    values = kept.scores["gene"].map({"G00": 0.05, "G01": -0.2, "G02": 0.6})
    found = page(changed(kept, **{metric: values}), metric=metric)
    if metric == "coverage":
        unknown = page(dataclasses.replace(changed(kept, coverage=values), settings={}), metric=metric)
        assert "Highest genes" in unknown.source and "Best genes" not in unknown.source
    shown = [re.search(rf"{end} genes</caption>.*?<td[^>]*>([^<]*)", found.source, re.DOTALL).group(1) for end in ends]
    assert tuple(shown) == expected


@pytest.mark.parametrize(
    ("metric", "own", "other", "words"),
    [
        ("pcc", 0.5, 0.3, "higher in 3 of 3"),
        ("mse", 0.3, 0.5, "lower in 3 of 3"),
        ("moran", -0.1, 0.3, "nearer to 0 in 3 of 3"),
        ("coverage", 0.95, 0.7, "nearer to 90% in 3 of 3"),
    ],
)
def test_a_better_model_is_called_so_whatever_the_metric(bare, page, metric, own, other, words):
    def scored(own, other):
        # Ties among the differences of genes would be tested by all permutations, which takes seconds.
        jitter = bare.scores["patient"].map({"A": 0.0, "B": 0.01, "C": 0.02})
        jitter = jitter + 1e-4 * bare.scores["gene"].astype("category").cat.codes ** 2
        values = np.where(bare.scores["model"] == "ridge", own, other + jitter)
        return page(changed(bare, **{metric: values}), metric=metric)

    better, worse = scored(own, other), scored(other, own)
    assert words in better.text["top"] and words.split(" in ")[0] + " in 0 of 3" in worse.text["top"]
    assert "is not shown to be better" not in better.text["warnings"]
    assert "is not shown to be better" in worse.text["warnings"]


def test_constant_predictions_are_told_from_constant_genes(shared_study, page):
    cv = ig.tl.cross_validate(shared_study, ["mean", "ridge"], baselines=False, n_permutations=2, keep_predictions=True)
    found = page(cv, label="mean")
    assert "have no correlation, because its prediction is constant there" in found.text["warnings"]
    assert "no predictions were kept" not in found.text["genes"]
    assert "No gene has a score, so these are genes with the highest mean" in found.text["genes"]
    measured = cv.predictions["mean"].layers["measured"]
    highest = cv.predictions["mean"].var_names[np.argmax(np.asarray(measured).mean(axis=0))]
    maps = [text for chapter, tag, text in found.blocks if (chapter, tag) == ("genes", "figure")]
    assert len(maps) == 1 and f"{highest}, A1" in maps[0]
    gene = cv.scores["gene"] == "G00"
    nrmse = cv.scores["nrmse"].mask(gene)
    both = page(changed(cv, nrmse=nrmse), label="mean")
    assert (
        "because the gene is constant there (4) or because its prediction is constant there (44)"
        in both.text["warnings"]
    )


def test_a_cross_validation_of_other_data_is_refused_or_marked(full, bare, page, copy_of):
    study, cv = full
    elsewhere = {name: f"Z{i}" for i, name in enumerate(cv.scores["section"].unique())}
    with pytest.raises(Img2GeneError, match=r"no scored section \(Z0, Z1.*is in the study \(A1"):
        page(study, cv=changed(bare, section=bare.scores["section"].map(elsewhere)))
    with pytest.raises(Img2GeneError, match="no scored gene"):
        page(study, cv=changed(bare, gene="other_" + bare.scores["gene"]))
    partly = changed(bare, section=bare.scores["section"].replace("A1", "Z1"), patient="A")
    found = page(study, cv=partly)
    assert "another study" in found.text["top"]
    assert "scored sections that the study lacks: Z1" in found.text["warnings"]
    assert "sections of another patient: B1, C1" in found.text["warnings"]
    assert "another study" not in page(study, cv=cv).text["top"]
    tested = dataclasses.replace(bare, scores=bare.scores[bare.scores["section"] != "A1"])
    assert "another study" not in page(study, cv=tested).text["top"]


def test_maps_are_not_drawn_on_tissue_with_other_labels(full, page, copy_of):
    study, cv = copy_of(full[0]), full[1]
    table = study["table"]
    rows = np.flatnonzero(table.obs["section"] == "A1")
    order = np.arange(table.n_obs)
    order[rows] = rows[::-1]
    table.X = table.X[order]
    found = page(study, cv=cv, genes="G00", n_sections=4)
    assert "in A1 its measured expression differs" in found.text["warnings"]
    assert "another study" in found.text["top"]


def test_names_inject_nothing(cv, tmp_path):
    evil = "<script>alert('$x_1$')</script>"
    renamed = changed(
        cv,
        gene=cv.scores["gene"].replace("G00", evil),
        section=cv.scores["section"].replace("A1", evil),
        model=cv.scores["model"].replace("ridge", evil),
    )
    kept = cv.predictions["ridge"].copy()
    kept.var_names = kept.var_names.str.replace("G00", evil, regex=False)
    kept.obs["section"] = kept.obs["section"].astype(str).replace("A1", evil)
    structure = cv.structure.replace({"A1": evil, "ridge": evil})
    folds = cv.folds.replace({"A1, A2": f"{evil}, A2"})
    renamed = dataclasses.replace(
        renamed, structure=structure, folds=folds, predictions={evil: kept}, warnings=[evil], settings={"a": evil}
    )
    source = ig.report(renamed, tmp_path / "page.html", title=evil, genes=evil).read_text()
    assert "<script" not in source
    assert source.count("&lt;script&gt;alert(&#39;$x_1$&#39;)&lt;/script&gt;") > 10


def test_many_genes_stay_readable(page):
    genes = [f"GENE{i}" for i in range(20_000)]
    rng, parts = np.random.default_rng(0), []
    for model in ("ridge", "mean"):
        for patient in ("A", "B"):
            facts = {"model": model, "fold": patient, "section": patient, "patient": patient, "gene": genes}
            values = {"pcc": rng.uniform(size=len(genes)), "mse": 1.0, "n_spots": 50, "leakage": False}
            parts.append(pd.DataFrame({**facts, **values}))
    scores = pd.concat(parts, ignore_index=True).astype({"leakage": "boolean"})
    folds = pd.DataFrame({"fold": ["A", "B"], "absent": [", ".join(genes), ""]})
    found = page(CrossValidation(scores, pd.DataFrame(), folds, "between patients"))
    assert "15 of 20,000 genes" in found.text["genes"]
    assert "(20,000 in all)" in found.text["splits"]
    assert len(found.source) < 1_000_000


def test_user_state_is_left_alone(trained_study, tmp_path):
    figure = plt.figure()
    before = dict(matplotlib.rcParams), matplotlib.get_backend(), plt.get_fignums()
    ig.report(trained_study, tmp_path / "page.html", n_genes=1)
    assert (dict(matplotlib.rcParams), matplotlib.get_backend(), plt.get_fignums()) == before
    plt.close(figure)


def test_a_page_is_there_as_a_whole_or_not_at_all(bare, tmp_path, monkeypatch):
    path = tmp_path / "page"
    assert ig.report(bare, path) == tmp_path / "page.html"
    before = (tmp_path / "page.html").read_text()

    def fail(*given):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Img2GeneError, match="disk full"):
        ig.report(bare, path)
    assert [found.name for found in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == before


def test_same_input_gives_the_same_page_but_for_the_time(bare, tmp_path):
    pages = [ig.report(bare, tmp_path / name, metric="spearman").read_text() for name in ("a.html", "b.html")]
    one, other = (re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d \w+", "", text) for text in pages)
    assert one == other


def test_what_cannot_be_done_is_said(cv, shared_study, tmp_path):
    with pytest.raises(Img2GeneError, match="Folder .*absent does not exist"):
        ig.report(cv, tmp_path / "absent" / "page.html")
    with pytest.raises(Img2GeneError, match="is a folder"):
        (tmp_path / "a.folder").mkdir()
        ig.report(cv, tmp_path / "a.folder")
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(Img2GeneError, match="overwrite=True"):
        ig.report(cv, tmp_path / "page.html", overwrite=False)
    with pytest.raises(Img2GeneError, match="Expected a SpatialData or a CrossValidation, got list"):
        ig.report([], tmp_path / "page.html")
    with pytest.raises(Img2GeneError, match="pass the study first"):
        ig.report(cv, tmp_path / "page.html", cv=cv)
    with pytest.raises(Img2GeneError, match=r"\. is a folder"):
        ig.report(cv, ".")
    for asked, message in (
        ({"n_genes": 0}, "n_genes=0"),
        ({"n_genes": 1.5}, "n_genes=1.5: expected a whole number"),
        ({"sections": []}, r"sections=\[\]"),
        ({"genes": []}, r"genes=\[\]"),
    ):
        with pytest.raises(Img2GeneError, match=message):
            ig.report(cv, tmp_path / "page.html", **asked)
    for asked, message in (
        ({"label": "rigde"}, "near: ridge"),
        ({"metric": "pccs"}, "near: pcc"),
        ({"genes": ["G99"]}, "G99 not predicted"),
        ({"sections": "Z"}, "No held-out section named Z"),
    ):
        with pytest.raises(MissingKeyError, match=message):
            ig.report(cv, tmp_path / "page.html", **asked)
    with pytest.raises(MissingKeyError, match="nofile"):
        ig.report(shared_study, tmp_path / "page.html", model="nofile")
    assert (tmp_path / "page.html").read_text() == "mine"


def test_numbers_and_tables_as_text():
    assert [number(value) for value in (None, np.nan, pd.NA)] == ["–"] * 3
    assert [number(value) for value in (1234, np.int64(7), 0.12345, -0.5, -0.0001, 12345.6)] == [
        *("1,234", "7", "0.123", "−0.500", "0.000", "12,346")
    ]
    assert [number(True), number(np.bool_(False)), number("a-b")] == ["yes", "no", "a-b"]
    assert interval(0.5, np.nan, np.nan) == "0.500"
    assert interval(np.nan, 0, 1) == "–"
    part = table(pd.DataFrame({"a": range(5)}), "caption", limit=2, what="genes")
    assert (len(part.rows), part.note) == (2, "2 of 5 genes shown.")


def test_template_is_part_of_the_package():
    folder = importlib.resources.files(_report) / "templates"
    assert {file.name for file in folder.iterdir()} == {"report.html", "report.css"}


def test_plot_draws_every_patient_and_the_interval(cv):
    (ax,) = ig.pl.cross_validation(cv, metric="spearman", genes="HVG").axes
    means, units = cv.summary("HVG", metric="spearman"), cv.by_unit("HVG")
    drawn = [collection for collection in ax.collections if collection.get_label() in set(units["patient"])]
    for collection in drawn:
        own = units[units["patient"] == collection.get_label()].set_index("model")["spearman"]
        np.testing.assert_allclose(
            np.ma.filled(collection.get_offsets()[:, 0], np.nan), own.reindex(means["model"]).to_numpy()
        )
    assert len(drawn) == 3
    assert [tick.get_text().split("\n")[0] for tick in ax.get_yticklabels()] == means["model"].tolist()
    assert ax.get_title() == "HVG"
    within = dataclasses.replace(cv, scope="within patient")
    assert "(within-patient estimate" in ig.pl.cross_validation(within).axes[0].get_title()
    with pytest.raises(MissingKeyError, match="No gene group 'HGV'"):
        ig.pl.cross_validation(cv, genes="HGV")
    with pytest.raises(MissingKeyError, match="No metric"):
        ig.pl.cross_validation(cv, metric="pccs")
    plt.close("all")


def test_browser_shows_all_images_and_asks_for_nothing(written, tmp_path, chromium):
    source = written.read_text(encoding="utf-8")
    # The page itself may run no script, so a copy without that rule counts what was decoded and requested.
    script = (
        "<script>window.onload = () => { const found = [...document.images].map(image => image.naturalWidth);"
        "document.body.dataset.widths = found; document.body.dataset.requests = performance.getEntriesByType('resource')"
        ".filter(entry => !entry.name.startsWith('data:')).length; document.body.dataset.wide = "
        "document.documentElement.scrollWidth > window.innerWidth; }</script>"
    )
    copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', script, source)
    (tmp_path / "copy.html").write_text(copy, encoding="utf-8")
    dom = chromium("--dump-dom", "--window-size=480,900", f"file://{tmp_path / 'copy.html'}")
    widths = [int(width) for width in re.search(r'data-widths="([^"]*)"', dom).group(1).split(",")]
    assert len(widths) == source.count("<img ") >= 9
    assert min(widths) > 100
    assert 'data-requests="0"' in dom
    assert 'data-wide="false"' in dom
    assert all(f'<section id="{name}">' in dom for name in CHAPTERS)


def test_screenshot_is_not_blank(written, tmp_path, chromium):
    from PIL import Image

    shot = tmp_path / "shot.png"
    chromium(f"--screenshot={shot}", "--window-size=1280,4000", f"file://{written}")
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (4000, 1280, 3)
    dark = (pixels.min(axis=2) < 200).reshape(8, 500, 1280).mean(axis=(1, 2))
    assert (dark > 0.005).all()
