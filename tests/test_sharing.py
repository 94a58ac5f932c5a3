"""Shared models: fetched from a server and from the hub's client, checked by digest, and described by a card."""

import functools
import hashlib
import http.server
import sys
import threading
import types

import numpy as np
import pandas as pd
import pytest

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene._files import hub


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(ig.settings, "cache_dir", tmp_path / "cache")


@pytest.fixture(scope="module")
def scored_study(shared_study, copy_of):
    sdata = copy_of(shared_study)
    ig.tl.fit(sdata, "ridge", validate_on=["C"])
    ig.tl.predict(sdata)
    ig.tl.evaluate(sdata, n_permutations=2)
    return sdata


@pytest.fixture
def published(scored_study, tmp_path):
    """A file as its publisher has it."""
    folder = tmp_path / "published"
    folder.mkdir()
    return ig.io.save_model(scored_study, folder / "model.img2gene")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def server(published):
    """Serve the folder of the published file, and count requests."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=published.parent)
    ) as host:
        thread = threading.Thread(target=host.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}", requests
        host.shutdown()
        thread.join()


def test_a_model_is_downloaded_once_and_is_the_same(server, published, scored_study):
    address, requests = server
    known = digest(published)
    model = ig.io.load_model(f"{address}/model.img2gene", sha256=known)
    assert model.fingerprint == ig.get.model(scored_study).fingerprint
    again = ig.io.load_model(f"{address}/model.img2gene", sha256=f"sha256:{known.upper()}".replace("SHA256", "sha256"))
    assert again.fingerprint == model.fingerprint and requests == ["/model.img2gene"]
    assert ig.tl.predict(scored_study, model, inplace=False).n_vars == len(model.genes)


def test_the_scheme_of_an_address_may_have_any_case(server, published, client):
    address, requests = server
    upper = address.replace("http://", "HTTP://")
    assert ig.io.load_model(f"{upper}/model.img2gene", sha256=digest(published)).name == "ridge"
    ig.io.load_model(f"{address}/model.img2gene", sha256=digest(published))
    # Both are one entry of the cache.
    assert requests == ["/model.img2gene"]
    assert ig.io.load_model("HF://Lab/breast@v1").name == "ridge"
    assert client == [("Lab/breast", "model.img2gene", "v1", False)]


def test_another_file_is_deleted_asked_for_once_more_and_named(server, published, tmp_path):
    address, requests = server
    known = digest(published)
    published.write_bytes(b"something else")
    with pytest.raises(
        Img2GeneError, match=rf"{address}/model.img2gene does not hold the file with sha256 {known}: two"
    ):
        ig.io.load_model(f"{address}/model.img2gene", sha256=known)
    assert len(requests) == 2
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_second_download_that_is_right_is_taken(server, published, monkeypatch):
    address, requests = server
    content, known = published.read_bytes(), digest(published)
    published.write_bytes(content[:-1])
    import pooch.core

    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: published.write_bytes(content))
    assert ig.io.load_model(f"{address}/model.img2gene", sha256=known).name == "ridge"
    assert len(requests) == 2


def test_a_damaged_copy_in_the_cache_is_fetched_anew(server, published, tmp_path):
    address, requests = server
    ig.io.load_model(f"{address}/model.img2gene", sha256=digest(published))
    (copy,) = (tmp_path / "cache" / "models").iterdir()
    copy.write_bytes(b"cut")
    ig.io.load_model(f"{address}/model.img2gene", sha256=digest(published))
    assert len(requests) == 2


def test_addresses_that_cannot_be_used_are_refused(server, published):
    address, requests = server
    with pytest.raises(Img2GeneError, match=r"needs the digest of the file, `sha256=…`"):
        ig.io.load_model(f"{address}/model.img2gene")
    with pytest.raises(Img2GeneError, match="expected 64 hexadecimal digits"):
        ig.io.load_model(f"{address}/model.img2gene", sha256="abc")
    assert not requests
    with pytest.raises(Img2GeneError, match=rf"{address}/absent cannot be downloaded \(404"):
        ig.io.load_model(f"{address}/absent", sha256="0" * 64)
    with pytest.raises(Img2GeneError, match=rf"its sha256 is {digest(published)}, expected 000"):
        ig.io.load_model(published, sha256="0" * 64)
    assert ig.io.load_model(published, sha256=digest(published)).name == "ridge"


# The hub


@pytest.fixture
def client(monkeypatch, published):
    """What is called of the hub's client."""
    calls = []

    def hf_hub_download(repository, file, revision, force_download):
        calls.append((repository, file, revision, force_download))
        return str(published)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    return calls


def test_a_model_of_the_hub_is_named_with_its_revision(client, published):
    assert ig.io.load_model("hf://lab/breast@v1").name == "ridge"
    ig.io.load_model("hf://lab/breast/models/other.img2gene@0a1b", sha256=digest(published))
    assert client == [
        ("lab/breast", "model.img2gene", "v1", False),
        ("lab/breast", "models/other.img2gene", "0a1b", False),
    ]
    for name in ("hf://lab/breast", "hf://lab@v1", "hf://lab/breast@"):
        with pytest.raises(Img2GeneError, match="expected 'hf://owner/name@revision'"):
            ig.io.load_model(name)
    with pytest.raises(Img2GeneError, match="names a branch, and what it holds can change"):
        ig.io.load_model("hf://lab/breast@main")
    with pytest.raises(Img2GeneError, match="hf://lab/breast@v1 is not the file that was asked for"):
        ig.io.load_model("hf://lab/breast@v1", sha256="0" * 64)
    # The copy in the client's cache could have been damaged, so the file was asked for once more.
    assert client[2:] == [("lab/breast", "model.img2gene", "v1", again) for again in (False, True)]


def test_a_damaged_copy_of_the_hubs_client_is_fetched_anew(published, tmp_path, monkeypatch):
    cached = tmp_path / "cached.img2gene"
    cached.write_bytes(published.read_bytes()[:-1])

    def hf_hub_download(repository, file, revision, force_download):
        if force_download:
            cached.write_bytes(published.read_bytes())
        return str(cached)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    assert ig.io.load_model("hf://lab/breast@v1", sha256=digest(published)).name == "ridge"


def test_the_hubs_refusals_say_what_to_do(monkeypatch):
    def hf_hub_download(repository, file, revision, force_download):
        error = OSError("401 Client Error")
        error.response = types.SimpleNamespace(status_code=401)
        raise error

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    with pytest.raises(
        Img2GeneError, match=r"gated: accept its terms on https://huggingface.co/lab/x, then run `hf auth login`"
    ):
        ig.io.load_model("hf://lab/x@v1")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Img2GeneError, match=r"needs huggingface-hub: `pip install \"img2gene\[zoo\]\"`"):
        ig.io.load_model("hf://lab/x@v1")
    assert hub.is_remote("https://a") and not hub.is_remote("/models/a.img2gene")
    assert not hub.is_remote("C:/models/a.img2gene")
    with pytest.raises(Img2GeneError, match=r"'s3://bucket/a.img2gene' cannot be fetched: expected a path, 'hf://"):
        ig.io.load_model("s3://bucket/a.img2gene")


# Cards


def test_a_card_says_what_the_report_holds(scored_study, published, tmp_path):
    text = ig.io.model_card(scored_study, tmp_path / "README.md", licence="CC-BY-4.0", limits=["Breast only."])
    assert (tmp_path / "README.md").read_text() == text
    for part in ("sections | A1, A2, B1", "patients | 2: A, B", "held out | C1", "split by | patient", "revision 1"):
        assert part in text, part
    assert "- Breast only." in text and 'license: "cc-by-4.0"' in text and "Trained on 2 patients" in text
    # The file alone is enough.
    assert ig.io.model_card(ig.io.load_model(published), licence="CC-BY-4.0", limits=["Breast only."]) == text


def test_the_scores_of_a_card_are_those_of_the_evaluation_beside_baselines(scored_study):
    summary = pd.read_json(__import__("io").StringIO(scored_study["table"].uns["img2gene"]["evaluation"]))
    text = ig.io.model_card(scored_study)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "| all |" in line]
    stated = {row[0].removeprefix("| "): float(row[2]) for row in rows if row[2].strip()}
    known = summary[summary["genes"] == "all"].set_index("model")["pcc"].dropna()
    assert len(known) > 1 and "ridge" in stated
    assert stated == pytest.approx(known.round(3).to_dict(), abs=1e-3)
    np.testing.assert_allclose(stated["ridge"], known["ridge"], atol=1e-3)


def test_a_model_without_a_held_out_score_gets_no_card(trained_study, tmp_path):
    with pytest.raises(Img2GeneError, match="no score on sections that were held out, and no model is offered without"):
        ig.io.model_card(trained_study, tmp_path / "README.md")
    assert not (tmp_path / "README.md").exists()
    with pytest.raises(Img2GeneError, match=r"expected the DataFrame of `img2gene.tl.summarize`"):
        ig.io.model_card(trained_study, scores=3)
    with pytest.raises(Img2GeneError, match="limits=3: expected a name or a list of names"):
        ig.io.model_card(trained_study, limits=3)


def test_the_scores_of_another_model_are_not_taken(scored_study, copy_of):
    sdata = copy_of(scored_study)
    evaluation = sdata["table"].uns["img2gene"]["evaluation"]
    model = ig.tl.fit(sdata, "ridge", validate_on=["B"], inplace=False)
    from img2gene.io.model_store import write_model

    write_model(sdata["table"], model, "img2gene")
    assert sdata["table"].uns["img2gene"].get("evaluation") == evaluation
    with pytest.raises(Img2GeneError, match="no score on sections"):
        ig.io.model_card(sdata)


def test_scores_on_patients_of_the_training_are_marked(shared_study, copy_of):
    sdata = copy_of(shared_study)
    ig.tl.fit(sdata, "ridge", groups="section", validate_on=["A2"], allow_leakage=True)
    ig.tl.predict(sdata)
    ig.tl.evaluate(sdata, n_permutations=2, allow_leakage=True)
    assert "these scores are optimistic" in ig.io.model_card(sdata)


def test_scores_of_sections_that_were_trained_on_get_no_card(scored_study, copy_of, tmp_path):
    sdata = copy_of(scored_study)
    model = ig.get.model(sdata)
    chosen = {"sections": ["C1", "A1"], "allow_leakage": True, "n_permutations": 2}
    scores = ig.tl.evaluate(sdata, **chosen)
    stored = ig.io.load_model(ig.io.save_model(sdata, tmp_path / "model"))
    for given in ((sdata, None), (stored, None), (model, ig.tl.summarize(scores))):
        with pytest.raises(Img2GeneError, match=r"no scores on held-out sections: the model was trained on A1. Run"):
            ig.io.model_card(given[0], tmp_path / "README.md", scores=given[1])
    assert not (tmp_path / "README.md").exists()
    # The same section under another name is known by its spots.
    table = sdata["table"]
    table.obs["section"] = table.obs["section"].astype(str).replace({"A1": "new"}).astype("category")
    table.obs["patient"] = table.obs["patient"].astype(str).where(table.obs["section"] != "new", "N").astype("category")
    renamed = ig.tl.evaluate(sdata, sections=["new"], allow_leakage=True, n_permutations=2, inplace=False)
    with pytest.raises(Img2GeneError, match="the model was trained on new"):
        ig.io.model_card(model, scores=ig.tl.summarize(renamed))


def test_scores_of_no_named_model_are_refused(scored_study, tmp_path):
    model = ig.get.model(scored_study)
    scores = ig.tl.evaluate(scored_study, n_permutations=2, inplace=False)
    summary = ig.tl.summarize(scores)
    summary.to_csv(tmp_path / "summary.csv", index=False)
    read = pd.read_csv(tmp_path / "summary.csv")
    with pytest.raises(Img2GeneError, match="nothing says of which model they are"):
        ig.io.model_card(model, scores=read)
    # A file can say so in a column.
    card = ig.io.model_card(model, scores=read.assign(fingerprint=model.fingerprint))
    assert card == ig.io.model_card(model, scores=summary)
    # Scores of two models joined are those of none.
    other = scores.assign(fingerprint="1234")
    both = ig.tl.summarize(pd.concat([scores.assign(fingerprint=model.fingerprint), other]))
    with pytest.raises(Img2GeneError, match="nothing says of which model they are"):
        ig.io.model_card(model, scores=both)


def test_what_is_written_into_a_card_stays_in_its_place(scored_study):
    yaml = pytest.importorskip("yaml")
    for licence in ("My Licence: v1", "no", "1.0", '"quoted" # and more', "cc-by-4.0"):
        text = ig.io.model_card(
            scored_study, title="A ridge\n# Validated", licence=licence, limits=["Breast\n\n## Licence\nonly."]
        )
        assert yaml.safe_load(text.split("---")[1])["license"] == licence.lower()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert "# A ridge # Validated" in headings and "# Validated" not in headings
    assert headings.count("## Licence") == 1 and "- Breast ## Licence only." in text


def test_a_table_of_scores_of_another_model_is_refused(scored_study, tmp_path):
    model = ig.get.model(scored_study)
    scores = ig.tl.evaluate(scored_study, n_permutations=2, inplace=False)
    summary = ig.tl.summarize(scores)
    assert "## Scores" in ig.io.model_card(model, scores=summary)
    other = ig.tl.fit(scored_study, "ridge", train_on=["A"], validate_on=["C"], inplace=False)
    assert other.name == model.name
    # The command line writes the fingerprint beside the scores, as a file keeps no more than its cells.
    read = ig.tl.summarize(pd.DataFrame(scores.to_dict()).assign(fingerprint=model.fingerprint))
    for table in (summary, read):
        with pytest.raises(Img2GeneError, match=f"scores of another model: their fingerprint is {model.fingerprint}"):
            ig.io.model_card(other, tmp_path / "README.md", scores=table)
    assert not (tmp_path / "README.md").exists()
