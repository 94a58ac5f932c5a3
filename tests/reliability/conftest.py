"""Undo what the trials change in the process, because other tests run in it, too."""

import copy
import logging
import os

import dask
import pytest
from matplotlib.figure import Figure

import img2gene as ig
from reliability import jobs, kills

LOGGERS = ("img2gene", "lightning")


@pytest.fixture(autouse=True, scope="module")
def restored():
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    settings, scheduler = copy.copy(vars(ig.settings)), dask.config.get("scheduler", None)
    savefig, folder = Figure.savefig, os.getcwd()
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    vars(ig.settings).update(settings)
    dask.config.set(scheduler=scheduler)
    Figure.savefig = savefig
    os.chdir(folder)


@pytest.fixture(scope="module")
def prepared_jobs():
    kills.prepare()
    yield
    jobs.remove_templates()
