"""The command: what it writes, what it prints, how it fails, and that nothing half-written stays."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata
import typer

import img2gene as ig
from img2gene._cli import main
from img2gene._cli.options import further, parsed

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / "docs" / "workflows"
COHORT = "synthetic --set n_patients=3 --set n_sections=1 --set n_spots=20 --set n_genes=20 --set mpp=2"
PARAMS = {"source": COHORT, "encoder": "tiny", "model": "ridge", "held_out": "P3"}


def run(*words):
    """Run the command in this process with words, or with one line of a shell."""
    return main(shlex.split(words[0]) if len(words) == 1 else list(map(str, words)))


def nextflow_commands():
    """Shell lines of the processes, in the order in which the file has them, which is that of the workflow."""
    scripts = re.findall(r'"""\n(.*?)"""', (WORKFLOWS / "main.nf").read_text(), flags=re.DOTALL)
    return [line.strip() for script in scripts for line in script.splitlines() if line.strip()]


def snakemake_commands():
    return re.findall(r'^    shell:\n        "(.*)"$', (WORKFLOWS / "Snakefile").read_text(), flags=re.MULTILINE)


def filled(command, study, model="model.img2gene"):
    for name, value in {
        **{f"params.{key}": text for key, text in PARAMS.items()},
        "study": study,
        "model": model,
    }.items():
        command = command.replace("${" + name + "}", value)
    assert "$" not in command
    return command


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_encoder):
    """A folder in which the commands of the Nextflow file were run in their order, on the synthetic cohort."""
    folder, before = tmp_path_factory.mktemp("workflow"), Path.cwd()
    os.chdir(folder)
    try:
        for command in nextflow_commands():
            words = shlex.split(command)
            study = {"embed": "study.zarr"}.get(words[2], "embedded.zarr")
            study = "predicted.zarr" if words[2] in ("evaluate", "report") else study
            assert words[0] == "img2gene"
            assert main(shlex.split(filled(command, study))[1:]) == 0, command
    finally:
        os.chdir(before)
    return folder


def test_the_nextflow_commands_lead_from_data_to_card(done):
    assert {path.name for path in done.iterdir()} == {
        *("study.zarr", "embedded.zarr", "model.img2gene", "predicted.zarr"),
        *("scores.csv", "report.html", "card.md"),
    }
    predicted = spatialdata.read_zarr(done / "predicted.zarr")
    model = ig.io.load_model(done / "model.img2gene")
    assert model.report["held_out"] == ["P3_S1"]
    expected = predicted["table"].layers["img2gene"]
    again = ig.tl.predict(spatialdata.read_zarr(done / "embedded.zarr"), model, inplace=False)
    np.testing.assert_array_equal(np.asarray(expected), np.asarray(again[:, predicted["table"].var_names].X))


def test_both_workflows_run_the_same_commands():
    def plain(commands):
        # Names of inputs and parameters differ, verbs and options do not.
        return [re.sub(r"\$?\{[\w.]+\}|[\w]+\.(?:zarr|img2gene|csv|html|md)\b", "X", command) for command in commands]

    assert plain(snakemake_commands()) == plain(nextflow_commands())


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed")
def test_snakemake_runs_the_workflow(tmp_path):
    command = tmp_path / "bin" / "img2gene"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m img2gene "$@"\n')
    command.chmod(0o755)
    config = ["--config", f"source={COHORT}", "encoder=color-texture"]
    subprocess.run(
        ["snakemake", "--cores", "1", "--snakefile", WORKFLOWS / "Snakefile", *config],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"},
        check=True,
    )
    assert {"scores.csv", "report.html", "card.md"} <= {path.name for path in tmp_path.iterdir()}


def test_evaluate_prints_and_writes_the_scores_of_the_function(done, capsys):
    model = done / "model.img2gene"
    assert run("evaluate", done / "predicted.zarr", "--model", model, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    scores = ig.tl.evaluate(spatialdata.read_zarr(done / "predicted.zarr"), model, inplace=False)
    pd.testing.assert_series_equal(pd.read_csv(done / "scores.csv")["pcc"], scores["pcc"], check_dtype=False, rtol=1e-9)
    summary = ig.tl.summarize(scores)
    assert printed["sections"] == ["P3_S1"] and printed["leakage"] is False
    assert [row["pcc"] for row in printed["scores"]] == [
        None if np.isnan(value) else pytest.approx(value) for value in summary["pcc"]
    ]
    # The training mean has no correlation, which JSON cannot say as NaN.
    assert None in [row["pcc"] for row in printed["scores"]]
    assert run("evaluate", done / "predicted.zarr", "--model", model) == 0
    assert re.search(r"^training mean +all +– ", capsys.readouterr().out, flags=re.MULTILINE)


def test_stores_are_joined(tmp_path, study, capsys):
    whole, stores = ig.io.to_anndata(study), []
    for name in ("A1", "B1"):
        part, path = whole[whole.obs["section"] == name].copy(), tmp_path / f"{name}.h5ad"
        part.uns = {"spatial": {name: whole.uns["spatial"][name]}}
        part.write_h5ad(path)
        stores.append(path.with_suffix(".zarr"))
        assert (
            run(
                "read",
                "anndata",
                path,
                "--out",
                path.with_suffix(""),
                "--set",
                "library_key=section",
                "--set",
                "spot_um=55",
            )
            == 0
        )
    assert run("read", "study", *stores, "--out", tmp_path / "both.zarr", "--json") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["sections"] == ["A1", "B1"]
    assert facts["n_spots"] == spatialdata.read_zarr(tmp_path / "both.zarr")["table"].n_obs == 98


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("fit {embedded} --model rigde --out new", 1, r"`rigde` not found.*ridge"),
        ("fit {embedded} --model ridge --set penaltyy=3 --out new", 1, "no parameter penaltyy"),
        ("fit {embedded} --model ridge --validate-on P9 --out new", 1, "P9"),
        ("fit {embedded} --model ridge", 2, "--out"),
        ("fit {embedded} --model ridge --set seed=3 --out new", 2, "the command sets"),
        ("fit {embedded} --model ridge --set seed --out new", 2, "expected NAME=VALUE"),
        ("predict {embedded} --out new", 1, "tl.fit"),
        ("predict {embedded} --model absent.img2gene --out new", 1, "absent.img2gene"),
        ("predict {embedded} --model {model} --table-key tiles --out new", 1, "tiles"),
        ("predict nowhere.zarr --out new", 1, "nowhere.zarr does not exist"),
        ("predict {model} --out new", 1, "is a file"),
        ("predict {folder} --out new", 1, "holds no study"),
        ("predict {embedded} --model {model} --out {predicted}", 1, "--overwrite"),
        ("predict {embedded} --model {model} --out nowhere/new", 1, "does not exist"),
        ("embed {study} --set bath_size=3 --out new", 2, "near: batch_size"),
        ("embed {study} --encoder tinny --out new", 1, "encoders.list"),
        ("embed {study} --encoder tiny --image scan --out new", 2, "--image scan names the image to tile, .*--tile-um"),
        (
            "fit {embedded} --model ridge --device cudax --out new",
            1,
            "device='cudax': this computer has no such device",
        ),
        ("predict {embedded} --model {model} --device cudax --out new", 1, "device='cudax': this computer has no"),
        ("read visium {folder} --patient A --patient B --out new", 2, "2 times"),
        ("read visium nowhere --out new", 1, "No such file or folder: nowhere"),
        ("read visium {folder} --out new", 1, "Space Ranger"),
        ("read visium --out new", 2, "at least one path"),
        ("read vizium {folder} --out new", 2, "vizium"),
        ("read visium {folder} --alignment a.csv --out new", 2, "takes no --alignment"),
        ("read synthetic --set n_spotz=3 --out new", 2, "near: n_spots"),
        ("read synthetic --set n_spots=3 --out new", 1, "n_spots"),
        ("evaluate {embedded} --model {model} --out new", 1, "img2gene"),
        ("card nowhere.img2gene --out new", 1, "nowhere.img2gene"),
        ("card {model} --out new", 1, "Pass `--scores scores.csv`, which `img2gene evaluate STUDY --model"),
        ("read anndata {model} --out new", 1, r"\.img2gene cannot be read as an AnnData"),
        ("benchmark --cohort nowhere", 1, "No cohort 'nowhere'"),
        ("benchmark --cohorts", 2, "--cohorts"),
        ("transmogrify", 2, "transmogrify"),
    ],
)
def test_failures_name_the_culprit_and_leave_nothing(done, tmp_path, monkeypatch, capsys, line, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    names = {path.stem: path for path in done.iterdir()} | {"folder": tmp_path / "empty"}
    assert run(line.format(**names)) == status
    shown = capsys.readouterr()
    # The box that typer draws around a message wraps it.
    assert re.search(message, re.sub(r"[│\s]+", " ", shown.err))
    assert shown.out == "" and "Traceback" not in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_what_was_not_foreseen_gets_a_sentence_and_on_demand_a_traceback(done, tmp_path, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(ig.tl, "fit", broken)
    for debug in ([], ["--debug"]):
        assert main([*debug, "fit", str(done / "embedded.zarr"), "--out", str(tmp_path / "new")]) == 1
        shown = capsys.readouterr().err
        assert "RuntimeError: the disk is on fire" in shown
        assert ("Traceback" in shown) == bool(debug)


def test_existing_output_is_replaced_on_demand_only(done, tmp_path):
    target = tmp_path / "kept.img2gene"
    target.write_bytes(b"mine")
    words = ("fit", done / "embedded.zarr", "--model", "mean", "--out", target)
    assert run(*words) == 1
    assert target.read_bytes() == b"mine"
    assert run(*words, "--overwrite") == 0
    assert ig.io.load_model(target).name == "mean"


def test_a_study_can_be_written_to_the_store_that_it_was_read_from(done, tmp_path):
    store = tmp_path / "study.zarr"
    shutil.copytree(done / "study.zarr", store)
    assert run("embed", store, "--encoder", "tiny", "--out", store, "--overwrite") == 0
    assert "X_tiny" in spatialdata.read_zarr(store)["table"].obsm


def test_tiles_are_laid_over_a_slide_and_predicted(done, tmp_path, capsys):
    slide, tiles, predicted = (tmp_path / f"{name}.zarr" for name in ("slide", "tiles", "predicted"))
    whole = spatialdata.read_zarr(done / "study.zarr")
    spatialdata.SpatialData(images={"scan": whole["P3_S1_image"]}).write(slide)
    model = done / "model.img2gene"
    words = ("embed", slide, "--encoder", "tiny", "--tile-um", "200", "--mpp", "2", "--out", tiles)
    assert run(*words, "--image", "skan") == 1
    assert "'skan' (available: scan)" in capsys.readouterr().err
    assert run(*words) == 0
    assert run("predict", tiles, "--model", model, "--table-key", "slide_tiles", "--out", predicted, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prediction"] == "tables['img2gene']"
    assert spatialdata.read_zarr(predicted)["img2gene"].n_vars == 20


def test_arguments_are_read_as_python_reads_them():
    assert parsed(["a=3", "b=0.5", "c=text", "d=[1, 2]", "e-f=None", "g=a=b"]) == {
        **{"a": 3, "b": 0.5, "c": "text", "d": [1, 2], "e_f": None},
        "g": "a=b",
    }
    for texts, message in ((["=3"], "NAME=VALUE"), (["a b=3"], "NAME=VALUE"), (["a=1", "a=2"], "given twice")):
        with pytest.raises(typer.BadParameter, match=message):
            parsed(texts)
    with pytest.raises(typer.BadParameter, match="no argument of predict"):
        further(ig.tl.predict, ["gene=3"])


def test_the_module_is_the_command_and_loads_nothing_heavy_for_its_help():
    code = (
        "import runpy, sys; sys.argv = ['img2gene', '--version']\n"
        "try: runpy.run_module('img2gene', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, *sorted({'torch', 'spatialdata', 'anndata'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == f"{ig.__version__}\n0\n"


def test_a_call_in_this_process_leaves_the_device_as_it_was(done, tmp_path, monkeypatch):
    monkeypatch.setattr(ig.settings, "device", "auto")
    seen = []
    monkeypatch.setattr(ig.tl, "fit", lambda *arguments, **options: seen.append(ig.settings.device))
    assert run("fit", done / "embedded.zarr", "--device", "cpu", "--out", tmp_path / "new") == 1
    assert (seen, ig.settings.device) == (["cpu"], "auto")


def test_the_list_of_the_benchmark_is_json_on_demand(tmp_path, capsys):
    assert run("benchmark", "--list", "--json", "--data", tmp_path) == 0
    facts = json.loads(capsys.readouterr().out)
    her2st = next(cohort for cohort in facts["cohorts"] if cohort["name"] == "her2st")
    assert her2st["sections"] == [] and her2st["state"].startswith("absent; expected")
    assert "lopo" in [protocol["name"] for protocol in facts["protocols"]]
    assert run("benchmark", "--list", "--data", tmp_path) == 0
    assert her2st["title"] in capsys.readouterr().out


def test_scores_of_sections_that_were_trained_on_give_no_card(done, tmp_path, capsys):
    model, scores = done / "model.img2gene", tmp_path / "scores.csv"
    words = ("evaluate", done / "predicted.zarr", "--model", model, "--section", "P1_S1", "--set", "allow_leakage=True")
    assert run(*words, "--out", scores) == 0
    assert run("card", model, "--scores", scores, "--out", tmp_path / "card.md") == 1
    assert "the model was trained on P1_S1" in capsys.readouterr().err
    assert not (tmp_path / "card.md").exists()


def test_a_call_in_this_process_leaves_its_messages_and_progress_bars_as_they_were(monkeypatch):
    package, command = logging.getLogger("img2gene"), logging.getLogger("img2gene._cli.app")
    before = list(package.handlers), package.level, command.level
    monkeypatch.setattr(ig.settings, "progress", True)
    for options in (["--quiet", "--debug"], ["--verbose"]):
        assert run(*options, "predict", "missing.zarr", "--out", "other.zarr") == 1
        assert (list(package.handlers), package.level, command.level) == before
        assert ig.settings.progress is True
