"""Patients and sections with numbers for names: 3, 3.0 and "3" are one name, however a table stores them."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene import Img2GeneError, LeakageError, MissingKeyError
from img2gene._checks import Arguments
from img2gene._study.sections import text_labels
from img2gene._study.study import Study

NUMBERS = {"A": 1.0, "B": 2.0, "C": 3.0}
COLUMNS = {
    "float": lambda values: values,
    "float32": lambda values: values.astype(np.float32),
    "nullable float": lambda values: values.astype("Float64"),
    "nullable integer": lambda values: values.astype("Int64"),
    "categories": lambda values: values.astype("category"),
    "objects": lambda values: values.astype(object),
    "int": lambda values: values.astype(int),
}
NAMES = {"int": 3, "text": "3", "float": 3.0, "numpy": np.int64(3), "numpy float": np.float32(3), "list": [3.0]}


def number_patients(study, convert=COLUMNS["float"]):
    column = study["table"].obs["patient"].astype(str).map(NUMBERS).astype(float)
    study["table"].obs["patient"] = convert(column)
    return study


@pytest.fixture
def numbered(study):
    return number_patients(study)


@pytest.mark.parametrize("convert", COLUMNS.values(), ids=COLUMNS)
def test_whole_numbers_are_read_without_a_decimal_point(study, convert):
    patients = Study.of(number_patients(study, convert)).patients
    assert list(dict.fromkeys(patients.tolist())) == ["1", "2", "3"]


def test_other_values_keep_their_text():
    values = pd.Series([2.5, 1e3, -4.0, "5.0", "P1", True, 7], dtype=object)
    assert text_labels(values, "patient").tolist() == ["2.5", "1000", "-4", "5.0", "P1", "True", "7"]


def test_a_missing_number_stays_missing(numbered):
    numbered["table"].obs.iloc[:5, numbered["table"].obs.columns.get_loc("patient")] = np.nan
    with pytest.raises(Img2GeneError, match=r"`obs\['patient'\]` is missing in 5 rows; name every row's patient"):
        ig.tl.fit(numbered, "ridge", validate_on=[3])


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_every_form_of_a_number_names_the_patient(numbered, name):
    model = ig.tl.fit(numbered, "ridge", validate_on=name, uncertainty=False, inplace=False)
    assert model.report["patients"] == ["1", "2"]
    assert model.report["held_out"] == ["C1"]


@pytest.mark.parametrize("name", [3.5, "3.0"])
def test_numbers_that_name_no_patient_are_refused_with_the_known_ones(numbered, name):
    with pytest.raises(MissingKeyError, match=rf"no patient named {name} \(available: 1, 2, 3\)"):
        ig.tl.fit(numbered, "ridge", validate_on=name)


def test_results_name_the_patients_alike(numbered):
    ig.tl.fit(numbered, "ridge", train_on=[1, 2.0])
    ig.tl.predict(numbered)
    assert ig.tl.evaluate(numbered, n_permutations=0)["patient"].unique().tolist() == ["3"]
    result = ig.tl.cross_validate(numbered, "mean", test_on=[2, "3"], baselines=False, n_permutations=0)
    assert result.scores["fold"].unique().tolist() == ["2", "3"]
    curve = ig.tl.learning_curve(numbered, "mean", test_on=3.0, fractions=(1,), n_repeats=1)
    assert curve["test_group"].unique().tolist() == ["3"]


@pytest.mark.parametrize("name", [7.0, 7, "7"])
def test_sections_are_named_by_numbers(numbered, name):
    numbers = {"A1": 4.0, "A2": 5.0, "B1": 6.0, "C1": 7.0}
    numbered["table"].obs["section"] = numbered["table"].obs["section"].astype(str).map(numbers).astype(float)
    ig.tl.fit(numbered, "ridge", validate_on=[3])
    ig.tl.predict(numbered)
    assert ig.tl.evaluate(numbered, sections=name, n_permutations=0)["section"].unique().tolist() == ["7"]
    ig.pp.select_genes(numbered, 5, sections=[name])
    ig.pl.prediction(numbered, "G00", sections=name)


def test_a_patient_who_was_trained_on_is_found_whatever_the_number_looks_like(numbered, make_section):
    ig.tl.fit(numbered, "ridge", validate_on=[3])
    model = ig.get.model(numbered)
    other = ig.io.concat_sections([make_section("N1", "N", seed=9)])
    ig.pp.extract_patches(other, patch_um=60, patch_px=32)
    ig.pp.embed_patches(other, "tiny")
    ig.tl.predict(other, model, key_added="img2gene")
    for patient, recorded in ((2, "2"), ("2.0", "2"), (2.0, "2.0")):
        other["table"].obs["patient"] = patient
        # Earlier versions recorded the text of a float.
        model.report["patients"] = ["1", recorded]
        with pytest.raises(LeakageError, match="sections N1"):
            ig.tl.evaluate(other, model)
    other["table"].obs["patient"] = 4.0
    assert not ig.tl.evaluate(other, model)["leakage"].any()


def test_one_number_written_in_two_ways_is_refused(study):
    table = study["table"]
    table.obs["patient"] = np.where(table.obs["section"] == "A2", "1.0", "1")
    with pytest.raises(Img2GeneError, match=r"'1' and '1.0'.* on both sides of a split"):
        ig.tl.fit(study, "ridge", groups="patient")


def test_joined_numbers_and_text_name_the_same_patient(make_section):
    parts = [make_section(name, None, n_side=4) for name in ("S1", "S2", "S3")]
    for part, patient in zip(parts, (1.0, "1", 2), strict=True):
        part["table"].obs["patient"] = patient
    study = Study.of(ig.io.concat_sections(parts))
    assert list(dict.fromkeys(study.patients.tolist())) == ["1", "2"]


def test_converted_tables_keep_their_numbered_patients(numbered):
    adata = ig.io.to_anndata(numbered)
    back = ig.io.from_anndata(adata, spot_um=55, library_key="section", patient_key="patient")
    assert set(Study.of(back).patients) == {"1", "2", "3"}
    adata.obs["donor"] = adata.obs.pop("patient")
    back = ig.io.from_anndata(adata, spot_um=55, library_key="section", patient_key="donor")
    assert set(back["table"].obs["patient"]) == {"1", "2", "3"}


def test_readers_take_numbers_for_the_patient():
    import anndata as ad

    image, xy = np.full((100, 100, 3), 200, np.uint8), np.array([[30.0, 50.0], [60.0, 50.0]])
    table = ad.AnnData(sp.csr_matrix(np.ones((2, 3), dtype=np.float32)))
    table.obs["patient"] = 3.0
    sdata = ig.io.build_section(image, xy, table, section="S1", patient=3.0, mpp=1.0, spot_um=10.0)
    assert set(sdata["table"].obs["patient"]) == {"3"}


@pytest.mark.parametrize("value", [np.nan, np.inf, True, 10**400, [None], [b"3"], {"a": 1}, np.array(3.0j), object()])
def test_what_is_no_name_is_refused(value):
    check = Arguments()
    assert check.labels("sections", value) is None
    assert "expected a name, a list of names, or None" in check.messages[0]
