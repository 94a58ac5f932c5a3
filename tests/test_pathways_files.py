"""Files of gene sets: damaged ones are refused with the reason; downloads are kept, checked and limited in time."""

import gzip
import hashlib
import logging
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

import img2gene as ig
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene.pathways import gmt, libraries, read_gene_sets

TEXT = "tumour\tsome words\tERBB2\tESR1\nstroma\t\tCOL1A1\n"
SETS = {"tumour": ["ERBB2", "ESR1"], "stroma": ["COL1A1"]}


# GMT files


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_and_spaces_around_names_are_read(tmp_path, end):
    path = tmp_path / "sets.GMT"
    path.write_bytes((TEXT.replace("ESR1", " ESR1 ").replace("\n", end) + end).encode())
    assert read_gene_sets(path) == read_gene_sets(str(path)) == SETS


def test_characters_that_divide_lines_elsewhere_are_part_of_a_name(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("one\u2028set\tx\x0by\tERBB2\n", encoding="utf-8")
    assert read_gene_sets(path) == {"one\u2028set": ["ERBB2"]}


ZIPPED = gzip.compress(TEXT.encode(), mtime=0)


def without_end(content):
    return content[: len(content) // 2]


def flipped(content):
    changed = bytearray(content)
    changed[15] ^= 0xFF
    return bytes(changed)


DAMAGED = {
    "empty.gmt": (b"", "is empty: it has no gene sets"),
    "blank.gmt": (b"\n \n\t\n", "is empty: it has no gene sets"),
    "binary.gmt": (b"a\tb\tc\0\0\n", "null characters, as binary files do"),
    "random.gmt": (np.random.default_rng(0).bytes(3000), "cannot be read as a GMT file, text in UTF-8"),
    "zipped.gmt": (ZIPPED, r"it is compressed; let its name end in `\.gmt\.gz`"),
    "utf16.gmt": (TEXT.encode("utf-16"), "it is in UTF-16; save it as UTF-8"),
    "utf16le.gmt": (TEXT.encode("utf-16-le"), "null characters"),
    "latin.gmt": ("für\t\tX\n".encode("latin-1"), "text in UTF-8: 'utf-8' codec can't decode"),
    "page.gmt": (b"\n<!DOCTYPE html>\n<html>\tnot\tfound</html>", "it is a web page.*Download it again"),
    "upper.gmt": (b"<HTML><body>404</body></HTML>", "it is a web page"),
    "xml.gmt": (b"<?xml version='1.0'?>\n<error>\ta\tb</error>", "it is a web page"),
    "json.gmt": (b'{"a": ["X"]}', "is no GMT file: expected name, description and genes"),
    "unnamed.gmt": (b"\tdescription\tX\n", "has 1 gene sets without a name"),
    "twice.gmt": (b"a\t\tX\na\t\tY\n", "names gene sets more than once: a"),
    "cut.gmt.gz": (without_end(ZIPPED), "no gzip file, or is damaged"),
    "flipped.gmt.gz": (flipped(ZIPPED), "cannot be read as a GMT file"),
    "nothing.gmt.gz": (b"", "is empty: it has no gene sets"),
    "text.gmt.gz": (TEXT.encode(), "no gzip file, or is damaged"),
    "page.gmt.gz": (b"<html>404</html>", "no gzip file, or is damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, name):
    content, message = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Img2GeneError, match=f"(?s){name}'.*{message}"):
        read_gene_sets(tmp_path / name)


def test_no_cut_or_changed_byte_gives_a_foreign_error(tmp_path):
    """Every prefix of a file, and 500 changed bytes, give gene sets or the package's error."""
    rng = np.random.default_rng(0)
    for name, content in (("sets.gmt", TEXT.encode()), ("sets.gmt.gz", ZIPPED)):
        changed = []
        for _ in range(500):
            values = bytearray(content)
            values[rng.integers(len(values))] = rng.integers(256)
            changed.append(bytes(values))
        for part in [content[:stop] for stop in range(len(content))] + changed:
            (tmp_path / name).write_bytes(part)
            try:
                assert read_gene_sets(tmp_path / name)
            except Img2GeneError as error:
                assert name in str(error) or "Gene sets" in str(error)


def test_a_file_that_expands_without_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gmt, "_MOST_BYTES", 2**20)
    for name, content in (("bomb.gmt.gz", gzip.compress(bytes(2**22))), ("large.gmt", b"a\tb\tc\n" * 2**18)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Img2GeneError, match=f"{name}' holds more than 1 MB"):
            read_gene_sets(tmp_path / name)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(Img2GeneError, match="is a folder; name a GMT file in it"):
        read_gene_sets(tmp_path)
    for source in (f"{tmp_path}/a\0b.gmt", "a\0b.gmt", Path("a\0b")):
        with pytest.raises(Img2GeneError, match="source=.*expected a path"):
            read_gene_sets(source)
    with pytest.raises(Img2GeneError, match="cannot be read: .*too long"):
        read_gene_sets(tmp_path / f"{'a' * 300}.gmt")
    with pytest.raises(MissingKeyError, match="No GMT file '.*absent.gmt'.*tissue, hallmark, reactome, go_bp"):
        read_gene_sets(tmp_path / "absent.gmt")


# Libraries


@pytest.fixture
def enrichr(monkeypatch, tmp_path):
    """A gseapy with one library whose genes name the organism; it counts downloads, and can fail or be slow."""
    fake = types.SimpleNamespace(error=None, downloads=[], seconds=0.0, genes=3, answer=None)

    def names(organism):
        time.sleep(fake.seconds)
        if fake.error:
            raise fake.error
        return ["Shared_2024"]

    def get(name, organism, max_size):
        fake.downloads.append(organism)
        return fake.answer or {"first": [f"{organism}_{i}" for i in range(fake.genes)], "second": ["X"]}

    module = types.ModuleType("gseapy")
    module.get_library_name, module.get_library = names, get
    monkeypatch.setitem(sys.modules, "gseapy", module)
    monkeypatch.setattr(ig.settings, "cache_dir", tmp_path / "cache")
    fake.folder = tmp_path / "cache" / "gene_sets"
    return fake


def test_each_organism_has_its_own_copy(enrichr):
    for _ in range(2):
        for organism in ("human", "mouse"):
            sets = read_gene_sets("Shared_2024", organism=organism)
            assert sets["first"] == [f"{organism}_{i}" for i in range(3)]
    assert enrichr.downloads == ["human", "mouse"]


def test_the_digest_of_the_first_download_is_kept(enrichr):
    read_gene_sets("Shared_2024")
    path = enrichr.folder / "human" / "Shared_2024.gmt"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name("Shared_2024.gmt.sha256").read_text() == f"{digest}  Shared_2024.gmt\n"
    assert sorted(file.name for file in path.parent.iterdir()) == ["Shared_2024.gmt", "Shared_2024.gmt.sha256"]


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


DAMAGE = {
    "cut": lambda path: rewrite(path, lambda content: content[:-3]),
    "empty": lambda path: rewrite(path, lambda content: b""),
    "other gene": lambda path: rewrite(path, lambda content: content.replace(b"human_1", b"human_7")),
    "page": lambda path: rewrite(path, lambda content: b"<html>404</html>"),
    "no digest": lambda path: path.with_name(f"{path.name}.sha256").unlink(),
    "cut digest": lambda path: rewrite(path.with_name(f"{path.name}.sha256"), lambda content: content[:20]),
    "binary digest": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(b"\xff\xfe\x00"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_copy_is_downloaded_again_with_a_warning(enrichr, caplog, kind):
    expected = read_gene_sets("Shared_2024")
    DAMAGE[kind](enrichr.folder / "human" / "Shared_2024.gmt")
    assert read_gene_sets("Shared_2024") == expected
    assert enrichr.downloads == ["human", "human"]
    assert "so the library is downloaded again" in caplog.text
    caplog.clear()
    assert read_gene_sets("Shared_2024") == expected
    assert len(enrichr.downloads) == (3 if kind == "folder" else 2)


def test_a_later_download_with_other_gene_sets_is_refused_until_accepted(enrichr):
    read_gene_sets("Shared_2024")
    path = enrichr.folder / "human" / "Shared_2024.gmt"
    path.unlink()
    enrichr.genes = 4
    message = r"other gene sets for Shared_2024 than when it was first downloaded.*remove '.*Shared_2024.gmt.sha256'"
    with pytest.raises(Img2GeneError, match=message):
        read_gene_sets("Shared_2024")
    assert not path.exists()
    path.with_name("Shared_2024.gmt.sha256").unlink()
    assert len(read_gene_sets("Shared_2024")["first"]) == 4


@pytest.mark.parametrize(
    "answer", [[], "<html>", {"a": "ERBB2\n"}, {"a": [None]}, {"a": ["B\tC"]}, {"": ["B"]}, {1: ["B"]}, {"a": ["\0"]}]
)
def test_an_answer_that_is_no_collection_is_refused_and_not_kept(enrichr, answer):
    enrichr.answer = answer or [0]
    with pytest.raises(Img2GeneError, match="could not be downloaded .Enrichr returned"):
        read_gene_sets("Shared_2024")
    assert not enrichr.folder.exists()


def test_a_server_that_does_not_answer_is_left_after_the_time_limit(enrichr, monkeypatch):
    monkeypatch.setattr(libraries, "_LISTING_SECONDS", 0.1)
    enrichr.seconds = 3.0
    before = set(threading.enumerate())
    start = time.perf_counter()
    with pytest.raises(Img2GeneError, match="(?s)no answer within 0.1 s.*hallmark, reactome, go_bp.*near: hallmark"):
        read_gene_sets("Hallmrak")
    assert time.perf_counter() - start < 2
    # Python can end while the call is still waiting.
    waiting = set(threading.enumerate()) - before
    assert all(thread.daemon for thread in waiting)


def test_the_time_limit_is_a_few_seconds():
    assert libraries._LISTING_SECONDS <= 5


@pytest.mark.parametrize("error", [ConnectionError("no network"), KeyError("statistics"), Exception("bare")])
def test_whatever_the_client_raises_is_named(enrichr, error):
    enrichr.error = error
    with pytest.raises(
        Img2GeneError, match=r"'MSigDB_Hallmark_2020' could not be downloaded .*pass the path of a GMT file"
    ):
        read_gene_sets("hallmark")


@pytest.mark.parametrize("name", ["..", "a|b", "~", "a" * 200, " ", "-rf", "a\nb", "CON:"])
def test_names_that_no_library_has_are_refused_without_a_connection(enrichr, name):
    enrichr.error = AssertionError("asked the server")
    with pytest.raises(MissingKeyError, match="No gene sets named .*tissue, hallmark, reactome, go_bp"):
        read_gene_sets(name)


def test_a_folder_that_cannot_be_written_costs_only_the_copy(enrichr, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ig.settings, "cache_dir", tmp_path / "file" / "folder")
    assert read_gene_sets("Shared_2024")["second"] == ["X"]
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize("folder", [3, "", "a\0b", []])
def test_a_cache_that_is_no_path_is_named(enrichr, monkeypatch, folder):
    with pytest.raises(Img2GeneError, match="cache_dir=.*expected a path"):
        monkeypatch.setattr(ig.settings, "cache_dir", folder)


def test_processes_that_start_together_read_whole_files(enrichr, caplog):
    results = []
    with caplog.at_level(logging.WARNING):
        threads = [threading.Thread(target=lambda: results.append(read_gene_sets("Shared_2024"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 8
    assert all(sets == results[0] for sets in results)
    assert len(list((enrichr.folder / "human").iterdir())) == 2
