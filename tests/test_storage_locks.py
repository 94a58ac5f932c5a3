"""Folders belong to one run at a time, and files are whole after every race, kill and full disk."""

import errno
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from img2gene import Img2GeneError
from img2gene._files import folders
from img2gene._files.folders import ResumableFolder, atomic_path, write_bytes
from img2gene._files.locks import LOCK, FolderLock, remove_stale, temporary_path

HOLD = """
import sys, time
from pathlib import Path
from img2gene._files.locks import FolderLock, temporary_path

lock = FolderLock(Path(sys.argv[1]), "folder")
temporary_path(Path(sys.argv[1]) / "part").write_text("half")
print("locked", flush=True)
time.sleep(60)
"""
RACE = """
import sys, time
from pathlib import Path
import numpy as np
from img2gene import Img2GeneError
from img2gene._files.folders import ResumableFolder

start = float(sys.argv[2])
time.sleep(max(start - time.time(), 0))
for number in range(20):
    try:
        folder = ResumableFolder.open(Path(sys.argv[1]) / str(number), {"seed": 0}, argument="folder")
        for part in ("a", "b"):
            if folder.load(part) is None:
                folder.save(part, {"n": number}, {"values": np.full(1000, number, dtype="f4")})
        print("done", flush=True)
    except Img2GeneError as error:
        print("refused" if "is in use by" in str(error) else repr(error), flush=True)
    folder = None
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has locked a folder and left a temporary file in it."""
    folder = tmp_path / "run"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused_and_free_after_a_kill(holder):
    folder, process = holder
    for _ in range(2):
        with pytest.raises(Img2GeneError, match=f"folder=.*run' is in use by process {process.pid} on .* Wait until"):
            ResumableFolder.open(folder, {}, argument="folder")
    process.kill()
    process.wait()
    opened = ResumableFolder.open(folder, {}, argument="folder")
    # The temporary file of the killed process is gone, the lock of this one is there.
    assert sorted(path.name for path in folder.iterdir()) == [LOCK, "identity.json"]
    del opened
    assert [path.name for path in folder.iterdir()] == ["identity.json"]


def test_twenty_races_of_four_processes_give_whole_results(tmp_path):
    start = str(time.time() + 3)
    command = [sys.executable, "-c", RACE, str(tmp_path), start]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    results = [process.communicate(timeout=120)[0].split("\n")[:-1] for process in processes]
    assert all(len(lines) == 20 and set(lines) <= {"done", "refused"} for lines in results), results
    for number in range(20):
        assert any(lines[number] == "done" for lines in results)
        folder = ResumableFolder.open(tmp_path / str(number), {"seed": 0})
        for part in ("a", "b"):
            facts, arrays = folder.load(part)
            assert facts == {"n": number}
            np.testing.assert_array_equal(arrays["values"], np.full(1000, number))
        del folder
        names = {path.name for path in (tmp_path / str(number)).iterdir()}
        assert names == {"identity.json", "a.json", "a.safetensors", "b.json", "b.safetensors"}


def test_one_process_may_open_a_folder_twice_and_its_workers_share_it(tmp_path):
    one = ResumableFolder.open(tmp_path / "run", {})
    two = ResumableFolder.open(tmp_path / "run", {})
    worker = pickle.loads(pickle.dumps(one))
    assert worker == one
    assert worker.lock is None
    worker.save("a", {}, {"x": np.ones(2)})
    del one
    assert (tmp_path / "run" / LOCK).is_file()
    assert two.load("a") is not None
    del two
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_refused_folder_is_not_left_locked(tmp_path):
    ResumableFolder.open(tmp_path / "run", {"seed": 0})
    with pytest.raises(Img2GeneError, match="other seed"):
        ResumableFolder.open(tmp_path / "run", {"seed": 1})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["identity.json"]


def test_a_forked_child_does_not_unlock_the_folder_of_its_parent(tmp_path):
    lock = FolderLock(tmp_path, "folder")
    child = multiprocessing.get_context("fork").Process(target=lock.close)
    child.start()
    child.join()
    assert (tmp_path / LOCK).is_file()
    lock.close()


def test_temporary_files_of_living_processes_stay(tmp_path):
    mine, foreign, old = (
        temporary_path(tmp_path / "a"),
        tmp_path / "b.123456-1-12345678.partial",
        tmp_path / "c.partial",
    )
    for path in (mine, foreign, old):
        path.write_text("half")
    os.utime(old, (0, 0))
    remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, foreign])
    os.utime(foreign, (0, 0))
    remove_stale(tmp_path, "a")
    assert foreign.exists()
    remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    path = tmp_path / "model"
    write_bytes(path, b"old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, step, full)
    with pytest.raises(Img2GeneError, match="model' cannot be written .No space left on device.; what was there"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "absent" / "file", tmp_path / ("x" * 300)):
        with pytest.raises(Img2GeneError, match="cannot be written"):
            write_bytes(path, b"")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


DAMAGE = ["[]", "{}", "", "null", '{"facts": {}}', "{", "[" * 100_000]


@pytest.mark.parametrize("text", DAMAGE, ids=range(len(DAMAGE)))
def test_a_foreign_part_is_named_and_counts_as_absent(tmp_path, caplog, text):
    folder = ResumableFolder.open(tmp_path / "run", {})
    folder.save("fit", {"a": 1}, {"x": np.ones(3)})
    (tmp_path / "run" / "fit.json").write_text(text)
    with caplog.at_level(logging.WARNING, logger="img2gene"):
        assert folder.load("fit") is None
    assert "fit in " in caplog.text
    assert "computed again" in caplog.text


def test_no_flipped_bit_of_a_part_is_accepted(tmp_path):
    folder = ResumableFolder.open(tmp_path / "run", {})
    folder.save("fit", {"a": 1}, {"x": np.ones(30)})
    rng = np.random.default_rng(0)
    for path in (tmp_path / "run" / "fit.json", tmp_path / "run" / "fit.safetensors"):
        content = path.read_bytes()
        for place in rng.integers(8 * len(content), size=40):
            changed = bytearray(content)
            changed[place // 8] ^= 1 << int(place % 8)
            path.write_bytes(changed)
            assert folder.load("fit") is None
        path.write_bytes(content)
    assert folder.load("fit")[0] == {"a": 1}


def test_facts_of_another_part_are_not_taken(tmp_path):
    folder = ResumableFolder.open(tmp_path / "run", {})
    folder.save("a", {"a": 1}, {"x": np.ones(3)})
    folder.save("b", {"a": 2}, {"x": np.zeros(3)})
    (tmp_path / "run" / "b.json").write_bytes((tmp_path / "run" / "a.json").read_bytes())
    assert folder.load("b") is None


def test_several_threads_write_parts_of_one_folder(tmp_path):
    folder = ResumableFolder.open(tmp_path / "run", {})
    threads = [threading.Thread(target=folder.save, args=(f"p{i}", {"i": i}, {"x": np.full(9, i)})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [folder.load(f"p{i}")[0]["i"] for i in range(8)] == list(range(8))


def test_a_benchmark_in_use_is_refused_clearly(holder, capsys):
    from img2gene.benchmark.__main__ import main

    folder, process = holder
    assert main(["--cohort", "synthetic", "--out", str(folder)]) == 2
    assert f"is in use by process {process.pid}" in capsys.readouterr().err
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".partial"]
