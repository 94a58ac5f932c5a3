"""Loggers of Lightning that are passed to `tl.fit` see every epoch of every training run."""

import logging

import pandas as pd
import pytest

import img2gene as ig
from img2gene import Img2GeneError

QUICK = {
    "max_epochs": 3,
    "n_models": 1,
    "n_validations": 1,
    "n_components": 4,
    "dim": 8,
    "heads": 1,
    "validate_on": ["C"],
    "uncertainty": False,
}


def test_a_csv_logger_is_told_what_the_history_holds(study, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    ig.tl.fit(study, "img2gene", logger=CSVLogger(tmp_path, name="", version=""), **QUICK)
    written = pd.read_csv(tmp_path / "metrics.csv")
    history = ig.get.model(study).predictor.history_
    runs = {str(entry.get("run", "fit")).replace(" ", "") for entry in history}
    assert {name.split("/")[0] for name in written if "/" in name} == runs
    for entry in history:
        run = str(entry.get("run", "fit")).replace(" ", "")
        for name in ("loss", *(["validation"] if "validation" in entry else [])):
            column = f"{run}/{name}"
            (value,) = written.loc[written["step"] == entry["epoch"], column].dropna()
            assert value == pytest.approx(entry[name], rel=1e-6)


def test_loggers_change_no_number(study, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    loggers = [CSVLogger(tmp_path / name) for name in ("one", "two")]
    plain, logged = (ig.tl.fit(study, "img2gene", inplace=False, logger=logger, **QUICK) for logger in (None, loggers))
    assert plain.fingerprint == logged.fingerprint
    assert len(list(tmp_path.rglob("metrics.csv"))) == 2


def test_tensorboard_gets_event_files(study, tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ig.tl.fit(study, "img2gene", logger=TensorBoardLogger(tmp_path, name="", version=""), **QUICK)
    tags = set()
    for path in tmp_path.rglob("events.out.tfevents*"):
        tags |= set(EventAccumulator(str(path)).Reload().Tags()["scalars"])
    assert {name for name in tags if name.endswith("/loss")}


def test_a_model_without_epochs_says_that_nothing_was_logged(study, tmp_path, caplog):
    from lightning.pytorch.loggers import CSVLogger

    with caplog.at_level(logging.WARNING, logger="img2gene"):
        ig.tl.fit(study, "ridge", validate_on=["C"], logger=CSVLogger(tmp_path))
    assert "`ridge` is not trained in epochs" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["csv", [3], print])
def test_other_loggers_are_refused(study, value):
    before = set(study["table"].uns)
    with pytest.raises(Img2GeneError, match=r"logger=.*lightning\.pytorch\.loggers"):
        ig.tl.fit(study, "ridge", validate_on=["C"], logger=value)
    assert set(study["table"].uns) == before
