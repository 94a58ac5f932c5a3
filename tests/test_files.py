"""Files are whole or absent, whatever happens while they are written; folders resume only the run they belong to."""

import os
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from img2gene import Img2GeneError
from img2gene._checks import Arguments
from img2gene._files.folders import RECORD, ResumableFolder, atomic_path, write_bytes
from img2gene._files.tables import read_csv, write_csv


def test_a_write_that_fails_midway_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "model.bin"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError, match="power"), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("power")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]


def test_a_failed_first_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "model.bin"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_writers_of_one_file_do_not_mix(tmp_path):
    path, contents = tmp_path / "model.bin", [bytes([i]) * 200_000 for i in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]


def test_nested_writers_of_one_file_end_with_the_last_one_as_a_whole(tmp_path):
    path = tmp_path / "model.bin"
    with atomic_path(path) as outer:
        outer.write_bytes(b"outer, first half")
        write_bytes(path, b"inner")
        assert path.read_bytes() == b"inner"
        outer.write_bytes(b"outer, both halves")
    assert path.read_bytes() == b"outer, both halves"
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]


def test_writing_never_sets_the_umask_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("two threads that set the umask can leave it at 0"))
    write_bytes(tmp_path / "model.bin", b"")


def test_others_may_read_what_is_written(tmp_path):
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    write_bytes(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


def test_parts_come_back_and_damaged_ones_count_as_absent(tmp_path):
    folder = ResumableFolder.open(tmp_path / "run", {"seed": 0})
    folder.save("fold0", {"score": 0.5}, {"weights": np.arange(3.0)})
    facts, arrays = ResumableFolder.open(tmp_path / "run", {"seed": 0}).load("fold0")
    assert facts == {"score": 0.5}
    np.testing.assert_array_equal(arrays["weights"], np.arange(3.0))
    (tmp_path / "run" / "fold0.safetensors").write_bytes(b"damaged")
    assert folder.load("fold0") is None
    assert folder.load("fold1") is None


def test_a_part_without_facts_counts_as_absent(tmp_path):
    folder = ResumableFolder.open(tmp_path / "run", {})

    def writer(path):
        (path / "fold0.txt").write_text("half")
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        folder.write("fold0", {"score": 0.5}, writer)
    assert folder.read("fold0", lambda path, facts: facts) is None


@pytest.mark.parametrize("error", [KeyError("layers"), EOFError(), ValueError("magic"), OSError("disk")])
def test_a_part_that_its_reader_refuses_counts_as_absent(tmp_path, caplog, error):
    folder = ResumableFolder.open(tmp_path / "run", {})
    folder.write("fold0", {}, lambda path: None)

    def reader(path, facts):
        raise error

    assert folder.read("fold0", reader) is None
    assert "fold0" in caplog.text
    assert "is computed again" in caplog.text


def test_a_folder_of_another_run_is_refused(tmp_path):
    ResumableFolder.open(tmp_path / "run", {"seed": 0, "dim": 4})
    with pytest.raises(Img2GeneError, match="holds a fit with other dim, seed"):
        ResumableFolder.open(tmp_path / "run", {"seed": 1, "dim": 8})


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_bytes(b"")
    with pytest.raises(Img2GeneError, match="is not empty and holds no fit"):
        ResumableFolder.open(tmp_path, {})


def test_an_unreadable_record_is_refused(tmp_path):
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(Img2GeneError, match="cannot be matched to a run"):
        ResumableFolder.open(tmp_path, {})


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Img2GeneError, match="is a file; name a folder"):
        ResumableFolder.open(tmp_path / "file", {})
    with pytest.raises(Img2GeneError, match="cannot be made"):
        ResumableFolder.open(tmp_path / "file" / "run", {})


def test_a_home_folder_of_nobody_is_a_path_like_others():
    check = Arguments()
    assert check.path("path", "~nobody_of_this_name/model") == Path("~nobody_of_this_name/model")
    assert check.messages == []


def test_a_folder_that_no_file_system_takes_is_refused():
    with pytest.raises(Img2GeneError, match="folder='x+' cannot be read: .*too long.* Name another folder"):
        ResumableFolder.open(Path("x" * 5_000), {}, argument="folder")


NAMES = [
    "NA",
    "None",
    "nan",
    "null",
    "",
    " ",
    "N/A",
    "1",
    "007",
    "1e5",
    "1_0",
    "inf",
    "True",
    "=1+1",
    "+A1",
    "-B",
    "-1",
    "@S",
]
NAMES += [
    "'",
    "'=x",
    "''@x",
    "\t=x",
    "\r",
    "a\rb",
    "\n",
    "a\r\nb",
    'a"b',
    '"',
    "x,y",
    "\ufeffa",
    "\u2028",
    "\x85",
    "\0",
    "γδ",
    "١",
]


@given(st.lists(st.text(), max_size=6), st.lists(st.text(), min_size=1, max_size=3))
@example(NAMES, ["section"])
@example(["G1"], NAMES)
def test_every_name_comes_back_from_a_table(tmp_path_factory, names, columns):
    path = tmp_path_factory.getbasetemp() / "names.csv"
    numbers = np.linspace(-1, 1, len(names)) / 3
    frame = pd.DataFrame([[*[name] * len(columns), number] for name, number in zip(names, numbers, strict=True)])
    frame = frame.reindex(columns=range(len(columns) + 1)).set_axis([*columns, "pcc"], axis=1)
    write_csv(frame, path)
    table = read_csv(path)
    assert table.columns.tolist() == [*columns, "pcc"]
    for place in range(len(columns)):
        assert table.iloc[:, place].tolist() == names
    assert table.iloc[:, -1].tolist() == numbers.tolist()
    # Spreadsheets look at the text inside the quotes.
    cells = (
        pd.read_csv(path, dtype=str, keep_default_na=False, header=None, quoting=0).to_numpy().ravel() if names else []
    )
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in cells)


def test_numbers_truth_values_and_missing_values_come_back_as_such(tmp_path):
    frame = pd.DataFrame(
        {
            "section": pd.Categorical(["1", None, "NA"]),
            "pcc": [0.1, np.nan, -1e-300],
            "n": [1, -2, 3],
            "shared": [True, False, True],
            "p": np.array([np.inf, -np.inf, 0], dtype=np.float32),
        }
    )
    write_csv(frame, tmp_path / "scores.csv")
    pd.testing.assert_frame_equal(
        read_csv(tmp_path / "scores.csv"), frame.astype({"section": object, "p": float}), check_exact=True
    )
    # Other readers see the same numbers.
    assert pd.read_csv(tmp_path / "scores.csv")["n"].tolist() == [1, -2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a table"),
        (b'"gene', "cannot be read as a table"),
        (b'gene"x\n', "cannot be read as a table"),
        (b"\xff\xfe", "cannot be read as a table"),
        (b"gene,pcc\nG1\n", "row 2 has 1 cells, expected 2"),
        (b"gene,pcc\nG1,1,\n", "row 2 has 3 cells, expected 2"),
        (None, "cannot be read as a table"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "scores.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(Img2GeneError, match=rf"scores\.csv.*{message}"):
        read_csv(path)


def test_a_table_that_a_spreadsheet_saved_again_is_read(tmp_path):
    (tmp_path / "scores.csv").write_bytes("\ufeffgene,pcc\r\n'-B,0.5\r\n".encode())
    assert read_csv(tmp_path / "scores.csv").to_dict("list") == {"gene": ["-B"], "pcc": [0.5]}
