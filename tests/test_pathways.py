"""Gene sets, their matching, scores and enrichment on arrays: against hand-computed values and other packages."""

import gzip
import json
import sys
import types
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene.pathways import (
    PathwayContext,
    aucell,
    enrich,
    match_gene_sets,
    rank_genes,
    read_gene_sets,
    select_pathways,
    ssgsea,
    zscore,
)

SYMBOLS = ["ERBB2", "ESR1", "COL1A1", "COL1A2", "CD3E", "ACTB"]
IDS = [f"ENSG0000000000{i}.{i + 3}" for i in range(6)]


def draw_counts(n_spots=60, n_genes=120, rate=0.6, seed=0):
    """Sparse counts, half of them zero and most others 1 to 3; every gene is detected somewhere."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rate * rng.gamma(1, 1, n_genes), (n_spots, n_genes))
    counts[rng.integers(n_spots, size=n_genes), np.arange(n_genes)] += 1
    return sp.csr_matrix(counts.astype(np.float32))


def draw_sets(n_genes=120, n_sets=9, seed=1):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 20, n_sets)
    return {f"set{i}": np.sort(rng.choice(n_genes, size, replace=False)) for i, size in enumerate(sizes)}


# Collections


def test_a_dict_is_read_without_repetitions():
    assert read_gene_sets({"a": ["X", "Y", "X", ""]}) == {"a": ["X", "Y"]}


@pytest.mark.parametrize("name", ["sets.gmt", "sets.gmt.gz"])
def test_gmt_files_are_read_plain_and_compressed(tmp_path, name):
    text = "tumour\tsome words\tERBB2\tESR1\nstroma type 1\t\tCOL1A1\n"
    opened = gzip.open if name.endswith("gz") else open
    with opened(tmp_path / name, "wt") as file:
        file.write(text)
    expected = {"tumour": ["ERBB2", "ESR1"], "stroma type 1": ["COL1A1"]}
    assert read_gene_sets(tmp_path / name) == read_gene_sets(str(tmp_path / name)) == expected


def test_a_network_is_read_by_source_and_target():
    network = pd.DataFrame({"source": ["b", "a", "b"], "target": ["X", "Y", "Z"], "weight": 1.0})
    assert read_gene_sets(network) == {"b": ["X", "Z"], "a": ["Y"]}


def test_the_packaged_collection_is_complete_and_says_where_it_comes_from():
    record = json.loads(files("img2gene.pathways").joinpath("tissue.json").read_text(encoding="utf-8"))
    assert record["source"]
    assert record["licence"]
    assert all(entry["reference"] for entry in record["programmes"].values())
    for organism in ("human", "mouse"):
        sets = read_gene_sets("tissue", organism=organism)
        assert len(sets) >= 25
        assert all(8 <= len(set(genes)) == len(genes) <= 25 for genes in sets.values())


def test_mouse_symbols_are_those_of_mice():
    human, mouse = (read_gene_sets("tissue", organism=organism) for organism in ("human", "mouse"))
    names = {gene for genes in mouse.values() for gene in genes}
    assert {"H2-Aa", "H2-Ab1", "Cd8b1", "Trp63", "Ccl21a", "Car9", "Lyz2", "Cd24a"} <= names
    assert not names & {gene for genes in human.values() for gene in genes}
    assert not any(gene.startswith("Hla") for gene in names)


FAULTS = {
    "organism": ({"source": "tissue", "organism": "yeast"}, "organism='yeast': expected one of human, mouse"),
    "file": ({"source": "none/such.gmt"}, "No GMT file 'none/such.gmt'.*tissue, hallmark, reactome, go_bp"),
    "columns": (
        {"source": pd.DataFrame({"source": ["a"], "gene": ["b"]})},
        r"target not found \(available: source, gene\)",
    ),
    "type": ({"source": 3}, "cannot be read from int: pass a dict, a GMT path"),
    "text": ({"source": {"a": "ERBB2", "b": ["X"], "c": [1]}}, "Gene sets a, c are not lists of gene names"),
    "empty": ({"source": {}}, "no gene sets"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_collection_is_refused(fault):
    options, message = FAULTS[fault]
    with pytest.raises(Img2GeneError, match=message):
        read_gene_sets(**options)


def test_gene_sets_of_one_name_are_refused(tmp_path):
    (tmp_path / "sets.gmt").write_text("a\t\tX\nb\t\tY\na\t\tZ\n")
    with pytest.raises(Img2GeneError, match=r"sets.gmt' names gene sets more than once: a\. Rename or merge"):
        read_gene_sets(tmp_path / "sets.gmt")


def test_a_byte_order_mark_is_no_part_of_a_name_and_other_encodings_are_refused(tmp_path):
    (tmp_path / "marked.gmt").write_bytes("a\t\tX\n".encode("utf-8-sig"))
    assert read_gene_sets(tmp_path / "marked.gmt") == {"a": ["X"]}
    (tmp_path / "latin.gmt").write_bytes("für\t\tX\n".encode("latin-1"))
    (tmp_path / "plain.gmt.gz").write_bytes(b"a\t\tX\n")
    for name in ("latin.gmt", "plain.gmt.gz"):
        with pytest.raises(Img2GeneError, match=f"{name}' cannot be read as a GMT file, text in UTF-8"):
            read_gene_sets(tmp_path / name)


def test_rows_of_a_network_without_a_gene_are_left_out(caplog):
    network = pd.DataFrame({"source": ["a", "a", None, "b"], "target": ["X", np.nan, "Y", "Z"]})
    assert read_gene_sets(network) == {"a": ["X"], "b": ["Z"]}
    assert "left out 2 rows of the network" in caplog.text


def test_a_file_without_tabs_is_no_gmt(tmp_path):
    (tmp_path / "list.gmt").write_text("ERBB2\nESR1\n")
    with pytest.raises(Img2GeneError, match=r"is no GMT file.*2 lines have fewer than three parts \(ERBB2, ESR1\)"):
        read_gene_sets(tmp_path / "list.gmt")


@pytest.mark.real
def test_real_collections_are_read(data):
    hallmark = read_gene_sets(data / "genesets" / "hallmark_v7.0.gmt")
    assert len(hallmark) == 50
    assert "VEGFA" in hallmark["HALLMARK_HYPOXIA"]
    processes = read_gene_sets(data / "genesets" / "GO_Biological_Process_2023.gmt")
    assert len(processes) > 5000
    assert all(all(genes) for genes in processes.values())


# Libraries


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A gseapy that knows two libraries and counts its downloads; ``library.error`` is raised if set."""
    fake = types.SimpleNamespace(error=None, downloads=[])

    def names(organism):
        if fake.error:
            raise fake.error
        return ["KEGG_2021_Human", "MSigDB_Hallmark_2020"]

    def get(name, organism, max_size):
        fake.downloads.append(name)
        return {"Hypoxia": ["VEGFA", "CA9"], "G2-M Checkpoint": ["MKI67"]}

    module = types.ModuleType("gseapy")
    module.get_library_name, module.get_library = names, get
    monkeypatch.setitem(sys.modules, "gseapy", module)
    monkeypatch.setattr(ig.settings, "cache_dir", tmp_path)
    return fake


def test_a_library_is_downloaded_once_and_kept(library, tmp_path):
    expected = {"Hypoxia": ["VEGFA", "CA9"], "G2-M Checkpoint": ["MKI67"]}
    assert read_gene_sets("hallmark") == expected
    library.error = ConnectionError("no network")
    assert read_gene_sets("hallmark") == read_gene_sets("MSigDB_Hallmark_2020") == expected
    assert library.downloads == ["MSigDB_Hallmark_2020"]
    kept = sorted(path.name for path in (tmp_path / "gene_sets" / "human").iterdir())
    assert kept == ["MSigDB_Hallmark_2020.gmt", "MSigDB_Hallmark_2020.gmt.sha256"]


def test_without_a_connection_the_error_says_what_to_do(library, tmp_path):
    library.error = ConnectionError("no network")
    with pytest.raises(
        Img2GeneError, match="'MSigDB_Hallmark_2020' could not be downloaded.*no network.*path of a GMT file"
    ):
        read_gene_sets("hallmark")
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_lists_what_there_is(library):
    with pytest.raises(
        MissingKeyError, match="named 'hallmrk'.*tissue, hallmark, reactome, go_bp; Enrichr: KEGG_2021_Human"
    ):
        read_gene_sets("hallmrk")
    assert not library.downloads


# Matching


def test_sets_are_matched_by_symbol_or_by_id_with_any_version():
    by_symbol = {"a": ["COL1A2", "ERBB2", "UNKNOWN"]}
    by_id = {"a": ["ENSG00000000003", "ENSG00000000000.1", "ENSG99"]}
    for gene_sets in (by_symbol, by_id):
        sets, table = match_gene_sets(gene_sets, SYMBOLS, IDS, min_genes=2)
        np.testing.assert_array_equal(sets["a"], [0, 3])
        assert table.to_dict("records") == [
            {"pathway": "a", "n_genes": 3, "n_matched": 2, "fraction": 2 / 3, "genes": "ERBB2;COL1A2", "kept": True}
        ]
    np.testing.assert_array_equal(match_gene_sets(by_id, IDS, min_genes=2)[0]["a"], [0, 3])


def test_case_is_ignored_only_where_that_doubles_what_is_found(caplog):
    mouse = [name.capitalize() for name in SYMBOLS]
    sets, _ = match_gene_sets({"a": ["ERBB2", "ACTB"]}, mouse, min_genes=2)
    np.testing.assert_array_equal(sets["a"], [0, 5])
    assert "matched regardless of case" in caplog.text
    caplog.clear()
    sets, _ = match_gene_sets({"a": ["ERBB2", "ACTB", "Esr1"]}, SYMBOLS, min_genes=2)
    np.testing.assert_array_equal(sets["a"], [0, 5])
    assert not caplog.records


def test_mouse_genes_that_look_human_do_not_keep_human_sets_from_matching(caplog):
    mouse = ["C2", "F3", "Erbb2", "Esr1", "Cd3e"]
    sets, table = match_gene_sets({"a": ["ERBB2", "ESR1", "C2"], "b": ["CD3E", "F3"]}, mouse, min_genes=2)
    np.testing.assert_array_equal(sets["a"], [0, 2, 3])
    np.testing.assert_array_equal(sets["b"], [1, 4])
    assert table["fraction"].tolist() == [1, 1]
    assert "2 of their genes match exactly, 5 in any case" in caplog.text
    caplog.clear()
    sets, _ = match_gene_sets({"a": ["ERBB2", "C2", "F3"]}, mouse, min_genes=2)
    np.testing.assert_array_equal(sets["a"], [0, 1])
    assert not caplog.records


@pytest.mark.real
def test_human_hallmarks_are_all_found_in_the_mouse_olfactory_bulb(data):
    with gzip.open(data / "mob_st" / "MOB1_counts.tsv.gz", "rt") as file:
        genes = file.readline().split()
    assert "C2" in genes or "F3" in genes
    sets, table = match_gene_sets(read_gene_sets(data / "genesets" / "hallmark_v7.0.gmt"), genes)
    assert len(sets) == 50
    assert table["fraction"].median() > 0.5


def test_small_sets_are_dropped_with_a_warning_that_names_them(caplog):
    gene_sets = {"large": SYMBOLS[:5], "small": SYMBOLS[:4], "absent": ["X"]}
    sets, table = match_gene_sets(gene_sets, SYMBOLS)
    assert list(sets) == ["large"]
    assert table["kept"].tolist() == [True, False, False]
    assert table["n_matched"].tolist() == [5, 4, 0]
    assert "dropped 2 gene sets with under 5 measured genes: small, absent" in caplog.text


def test_without_overlap_the_error_shows_both_name_spaces():
    with pytest.raises(Img2GeneError, match="(?s)best has 0.*Xyz1, Xyz2.*ERBB2.*ENSG00000000000.*gene_ids=.*organism="):
        match_gene_sets({"a": ["Xyz1", "Xyz2"]}, SYMBOLS, IDS)


# AUCell


def test_aucell_by_hand():
    # Falling: genes 0 (rank 1), 1, 2, … Only ranks below n_up = 3 add: 3 − 1 = 2 and 3 − 2 = 1; at most 2 + 1.
    counts = np.array([[60, 50, 40, 30, 20, 10]])
    sets = {"top": [0, 1], "second": [1, 4], "single": [0], "third": [2, 3], "five": [0, 2, 3, 4, 5]}
    np.testing.assert_allclose(aucell(counts, sets, n_up=3), [[1, 1 / 3, 1, 0, 2 / 3]], rtol=1e-6)


def test_aucell_equals_decoupler_with_ties_and_zeros():
    decoupler = pytest.importorskip("decoupler")
    from anndata import AnnData

    counts, sets = draw_counts(), draw_sets()
    names = np.array([f"G{i}" for i in range(counts.shape[1])])
    adata = AnnData(counts, var=pd.DataFrame(index=names))
    network = pd.DataFrame([(name, gene) for name, found in sets.items() for gene in names[found]])
    network = network.set_axis(["source", "target"], axis=1).assign(weight=1.0)
    detected = np.diff(counts.indptr)
    for n_up in (None, 10, int(np.median(detected)), 100):
        # From the deepest spots with ties at the threshold to spots whose top is filled with undetected genes.
        decoupler.mt.aucell(adata, network, tmin=0, n_up=n_up)
        theirs = adata.obsm["score_aucell"][list(sets)].to_numpy()
        np.testing.assert_allclose(aucell(counts, sets, n_up=n_up), theirs, atol=1e-6)
    assert (detected < 100).all()


def test_aucell_equals_decoupler_where_genes_and_spots_are_empty():
    decoupler = pytest.importorskip("decoupler")
    from anndata import AnnData

    counts, sets = draw_counts().toarray(), draw_sets()
    counts[:, 10:20] = 0
    counts[5] = 0
    names = np.array([f"G{i}" for i in range(counts.shape[1])])
    network = pd.DataFrame([(name, gene) for name, found in sets.items() for gene in names[found]])
    network = network.set_axis(["source", "target"], axis=1).assign(weight=1.0)
    adata = AnnData(counts, var=pd.DataFrame(index=names))
    decoupler.mt.aucell(adata, network, tmin=0, empty=False)
    ours = aucell(counts, sets)
    known = np.arange(len(counts)) != 5
    np.testing.assert_allclose(ours[known], adata.obsm["score_aucell"][list(sets)].to_numpy()[known], atol=1e-6)
    assert np.isnan(ours[5]).all()


def test_aucell_does_not_depend_on_batches_storage_or_other_spots():
    counts, sets = draw_counts(), draw_sets()
    expected = aucell(counts, sets)
    assert expected.dtype == np.float32
    for other in (counts.toarray(), counts.tocsc(), counts.astype(np.int32), counts.toarray().astype(np.uint8)):
        np.testing.assert_array_equal(aucell(other, sets), expected)
    for size in (1, 7, 1000):
        np.testing.assert_array_equal(aucell(counts, sets, batch_size=size), expected)
    np.testing.assert_array_equal(aucell(counts[[40, 3]], sets), expected[[40, 3]])


@pytest.mark.parametrize("change", [np.log1p, np.sqrt, lambda values: 1e4 * values / 37, lambda values: values**3])
def test_aucell_does_not_depend_on_increasing_transformations(change):
    counts, sets = draw_counts().toarray().astype(float), draw_sets()
    np.testing.assert_array_equal(aucell(change(counts), sets), aucell(counts, sets))


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ({}, {}, "no gene sets to score"),
        ({"a": [0, 9], "b": []}, {}, "(?s)Gene sets b have no genes.*Gene sets a name columns outside 0 to 5"),
        ({"a": [0]}, {"n_up": 7}, "n_up=7: expected a number from 2 to 6"),
    ],
)
def test_aucell_refuses_what_cannot_be_scored(sets, options, message):
    with pytest.raises(Img2GeneError, match=message):
        aucell(np.ones((2, 6)), sets, **options)


# The other scores


def test_ssgsea_equals_gseapy_in_every_batch():
    import gseapy

    counts, sets = draw_counts(n_spots=140), draw_sets()
    genes = [f"GENE{i}" for i in range(counts.shape[1])]
    frame = pd.DataFrame(counts.toarray().T, index=genes, columns=[f"s{i}" for i in range(counts.shape[0])])
    named = {name: [genes[i] for i in found] for name, found in sets.items()}
    theirs = gseapy.ssgsea(frame, named, outdir=None, min_size=1, threads=1).res2d
    theirs = theirs.pivot(index="Name", columns="Term", values="ES").loc[frame.columns, list(sets)].to_numpy(float)
    ours = ssgsea(counts, sets)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_array_equal(ssgsea(counts[[7]], sets), ours[[7]])


def test_zscore_by_hand():
    # Reference rows 0 and 1: means 1 and 3, SDs 1 and 2; gene 2 does not vary there.
    labels = np.array([[0.0, 1, 5], [2, 5, 5], [4, 3, 9], [0, 0, 0]])
    sets = {"both": [0, 1], "second": [1, 2], "constant": [2]}
    expected = [[-1, -1, np.nan], [1, 1, np.nan], [1.5, 0, np.nan], [np.nan] * 3]
    for values in (labels, sp.csr_matrix(labels)):
        found = zscore(values, sets, reference=np.array([0, 1]))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_spots_without_counts_are_nan_and_nothing_else_is():
    counts, sets = draw_counts().toarray(), draw_sets()
    counts[[0, 9]] = 0
    for found in (aucell(counts, sets), ssgsea(sp.csr_matrix(counts), sets), zscore(counts, sets)):
        assert np.isnan(found[[0, 9]]).all()
        assert np.isfinite(np.delete(found, [0, 9], axis=0)).all()


# Enrichment


@pytest.fixture(scope="module")
def planted():
    """Labels of two sections: genes 0–11 follow a smooth field that the features show, the others are noise."""
    rng = np.random.default_rng(0)
    side = np.linspace(0, 1, 12)
    positions = np.tile(np.array(np.meshgrid(side, side)).reshape(2, -1).T, (2, 1))
    sections = np.repeat(["S1", "S2"], 144)
    field = np.sin(5 * positions[:, 0]) + np.cos(4 * positions[:, 1])
    labels = rng.normal(size=(288, 200))
    labels[:, :12] += field[:, None]
    features = np.column_stack([field + 0.3 * rng.normal(size=288), rng.normal(size=(288, 30))])
    genes = [f"gene{i}" for i in range(200)]
    sets = {f"random{i}": list(rng.choice(genes[12:], 12, replace=False)) for i in range(8)}
    return labels, sections, positions, features, genes, {**sets, "planted": genes[:12]}


def test_genes_of_the_tissue_rank_first(planted):
    labels, sections, positions, features, _, _ = planted
    for given in (features, None):
        scores = rank_genes(labels, sections, positions, given)
        assert scores[:12].min() > np.quantile(scores[12:], 0.95)
        np.testing.assert_array_equal(scores, rank_genes(sp.csr_matrix(labels), sections, positions, given))


def test_morphology_is_adjusted_for_chance_and_centred_by_section(planted):
    from img2gene.models.centring import centre
    from img2gene.pathways.enrichment import _components, _explained

    _, sections, _, features, _, _ = planted
    rng = np.random.default_rng(3)
    shift = np.where(sections == "S1", 0.0, 9.0)[:, None]
    noise = rng.normal(size=(288, 400))
    basis = _components(features + shift, sections, 0)
    np.testing.assert_allclose(basis.T @ basis, np.eye(20), atol=1e-8)
    shares = _explained(centre(noise + shift, sections), basis, 2)
    assert abs(shares.mean()) < 0.01
    np.testing.assert_allclose(_explained(basis[:, :3], basis, 2), 1)


def test_ranks_are_averaged_and_constant_genes_have_none(planted):
    labels, sections, positions, features, _, _ = planted
    labels = labels[:, 10:15].copy()
    labels[:, 4] = 2
    both, place = (rank_genes(labels, sections, positions, given) for given in (features, None))
    assert np.isnan(both[4])
    assert sorted(place[:4]) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert both[:2].min() > both[2:4].max()


def test_arrays_of_different_length_are_refused(planted):
    labels, sections, positions, features, _, _ = planted
    with pytest.raises(Img2GeneError, match="(?s)sections has 287 rows, labels have 288.*features has 3 rows"):
        rank_genes(labels, sections[1:], positions, features[:3])


def test_enrichment_finds_the_planted_set_and_no_random_one(planted):
    labels, sections, positions, features, genes, sets = planted
    ranking = pd.Series(rank_genes(labels, sections, positions, features), index=genes)
    table = enrich(ranking, sets, seed=0, n_permutations=300)
    assert list(table) == ["pathway", "es", "nes", "pval", "fdr", "n_genes", "leading_edge"]
    first, others = table.iloc[0], table.iloc[1:]
    assert first["pathway"] == "planted"
    assert first["nes"] > 1.5
    assert first["fdr"] < 0.05
    assert first["n_genes"] == 12
    assert set(first["leading_edge"].split(";")) <= set(sets["planted"])
    assert others["fdr"].min() > 0.05
    assert others["nes"].min() < 0


def test_enrichment_repeats_with_the_seed_and_writes_nothing(planted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    genes, sets = planted[4:]
    ranking = pd.Series(np.random.default_rng(0).normal(size=200), index=genes)
    one, again, other = (enrich(ranking, sets, seed=seed, n_permutations=100) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, again)
    assert not one["nes"].equals(other["nes"])
    assert not list(tmp_path.iterdir())


def test_sets_without_ranked_genes_come_last_and_ties_keep_the_order(planted):
    genes = planted[4]
    ranking = pd.Series(np.repeat([1.0, 0.0], 100), index=genes)
    table = enrich(ranking, {"none": ["X"], "all": genes, "some": genes[:9]}, seed=0, n_permutations=100)
    assert table["pathway"].tolist() == ["some", "all", "none"]
    assert table["nes"].isna().tolist() == [False, True, True]
    assert table["leading_edge"].tolist() == [";".join(genes[:9]), "", ""]
    with pytest.raises(Img2GeneError, match="1 genes are ranked"):
        enrich(ranking[:1], {"a": genes[:1]}, seed=0)
    with pytest.raises(Img2GeneError, match="n_permutations=20: expected a whole number from 100 to 100000"):
        enrich(ranking, {"a": genes[:9]}, seed=0, n_permutations=20)


def test_selection_takes_the_highest_nes_and_ties_by_name():
    table = pd.DataFrame({"pathway": ["d", "b", "c", "a"], "nes": [np.nan, 2.0, 1.0, 2.0]})
    assert select_pathways(table, 3) == ["a", "b", "c"]
    assert select_pathways(table.iloc[::-1], 9) == ["a", "b", "c", "d"]


def test_a_context_cannot_be_changed():
    context = PathwayContext(["a"], {"a": ["X"]}, "aucell", np.zeros((1, 1)), None)
    with pytest.raises(AttributeError):
        context.names = []
