"""Work that dask's workers share: results are those of one process, and a worker that dies loses nothing."""

import importlib.metadata
import logging
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import pytest

import img2gene as ig
from img2gene import _cluster
from img2gene._cluster import client as cluster_client
from img2gene._cluster import run_parts

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:distributed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
# Workers cannot import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
SMALL = {"n_models": 2, "max_epochs": 1, "n_components": 4, "dim": 8, "heads": 1, "n_validations": 1}


@contextmanager
def two_workers():
    """A client of two workers of one thread each, in processes of their own."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture(scope="module")
def client():
    """Two workers that many tests use."""
    with two_workers() as client:
        yield client


@pytest.fixture
def mortal():
    """Two workers of one test, which may kill them: one that is killed while it starts is not always started again."""
    with two_workers() as client:
        yield client


@pytest.fixture(scope="module")
def embedded():
    sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=30, mpp=2.0)
    ig.pp.extract_patches(sdata, patch_um=112, patch_px=32)
    ig.pp.embed_patches(sdata, "color-texture", client=False)
    return sdata


def die_once(shared, part):
    """Kill the worker of one part the first time that it gets it."""
    mark = Path(shared)
    if part == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return part**2


def always_die(shared, part):
    os.kill(os.getpid(), signal.SIGKILL)


def process_and_encoders(shared, part):
    from img2gene._study import embedding

    return os.getpid(), [id(embedder.model) for embedder in embedding._IN_WORKER.values()]


def refuse(shared, part):
    raise ig.MissingKeyError("no such spot")


def test_without_a_client_parts_come_in_their_order():
    assert list(run_parts(None, pow, 2, [1, 2, 3])) == [(0, 2), (1, 4), (2, 8)]


def test_every_part_comes_once(client):
    assert sorted(run_parts(client, pow, 2, list(range(20)))) == [(n, 2**n) for n in range(20)]


def test_an_error_of_a_part_keeps_its_kind(client):
    with pytest.raises(ig.MissingKeyError, match="no such spot"):
        list(run_parts(client, operator.call, partial(refuse, None), [1, 2]))


@pytest.mark.parametrize("tokens", [None, 9])
def test_embeddings_are_those_of_one_process(client, embedded, copy_of, tokens, tmp_path):
    sdata = copy_of(embedded)
    expected = ig.pp.embed_patches(sdata, "color-texture", tokens=tokens, client=False, inplace=False)["obsm"]
    found = ig.pp.embed_patches(sdata, "color-texture", tokens=tokens, client=client, inplace=False)["obsm"]
    ig.pp.embed_patches(sdata, "color-texture", tokens=tokens, client=client, out=tmp_path / "embedded.zarr")
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)
        np.testing.assert_array_equal(sdata["table"].obsm[key].compute(), values)


def test_the_default_encoder_is_loaded_once_per_worker_and_agrees(client, embedded, copy_of):
    sdata = copy_of(embedded)
    expected = ig.pp.embed_patches(sdata, client=False, inplace=False)["obsm"]["X_efficientnet-lite0"]
    found = ig.pp.embed_patches(sdata, client=client, inplace=False)["obsm"]["X_efficientnet-lite0"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    before = {result for _, result in run_parts(client, operator.call, partial(_first, None), range(40))}
    ig.pp.embed_patches(sdata, client=client, inplace=False)
    assert {result for _, result in run_parts(client, operator.call, partial(_first, None), range(40))} == before
    assert 1 <= len(before) <= 2


def _first(shared, part):
    time.sleep(0.01)
    process, models = process_and_encoders(shared, part)
    assert len(models) == 1
    return process, models[0]


@pytest.mark.parametrize(("model", "parameters"), [("ridge", {}), ("knn", {"k": 3}), ("img2gene", SMALL)])
def test_predictions_are_those_of_one_process(client, embedded, copy_of, tmp_path, model, parameters, monkeypatch):
    sdata = copy_of(embedded)
    ig.tl.fit(sdata, model, validate_on=["P3"], genes=10, **parameters)
    monkeypatch.setattr("img2gene.models.row_blocks.BLOCK_ROWS", 20)
    monkeypatch.setattr("img2gene.io.table_store._MOST_ROWS", 20)
    expected = ig.tl.predict(sdata, client=False, inplace=False)
    found = ig.tl.predict(sdata, client=client, inplace=False)
    stored = ig.tl.predict(sdata, client=client, inplace=False, out=tmp_path / "predicted.zarr")
    np.testing.assert_allclose(found.X, expected.X, atol=1e-5)
    np.testing.assert_allclose(stored.X.compute(), expected.X, atol=1e-5)
    assert found.obs.equals(expected.obs)
    for name in expected.layers:
        np.testing.assert_allclose(found.layers[name], expected.layers[name], atol=1e-5)


def test_cross_validation_is_that_of_one_process_and_resumes_from_its_folder(client, embedded, tmp_path, monkeypatch):
    options = {"genes": 5, "baselines": False, "n_permutations": 2, "keep_predictions": True}
    expected = ig.tl.cross_validate(embedded, ["ridge", "mean"], client=False, **options)
    found = ig.tl.cross_validate(embedded, ["ridge", "mean"], client=client, folder=tmp_path / "cv", **options)
    pd.testing.assert_frame_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.predictions["ridge"].X, expected.predictions["ridge"].X)
    monkeypatch.setattr("img2gene.tl._cross_validation.run._run_task", refuse)
    again = ig.tl.cross_validate(embedded, ["ridge", "mean"], client=client, folder=tmp_path / "cv", **options)
    pd.testing.assert_frame_equal(again.scores, expected.scores)


def test_a_worker_that_is_killed_loses_nothing(mortal, tmp_path):
    workers = set(mortal.scheduler_info()["workers"])
    found = dict(run_parts(mortal, operator.call, partial(die_once, str(tmp_path / "killed")), list(range(12))))
    assert found == {n: n**2 for n in range(12)} and (tmp_path / "killed").exists()
    assert set(mortal.scheduler_info()["workers"]) != workers


def test_work_that_kills_every_worker_is_given_up(mortal):
    # The second death is enough, so that no worker has to be started again.
    mortal.cluster.scheduler.allowed_failures = 1
    with pytest.raises(ig.Img2GeneError, match="died again and again"):
        list(run_parts(mortal, operator.call, partial(always_die, None), [1]))


def test_a_cluster_without_workers_is_waited_for_with_a_word(monkeypatch, caplog):
    monkeypatch.setattr(cluster_client, "_PATIENCE", 0.1)
    options = {"n_workers": 0, "processes": False, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster, set_as_default=False) as client:
        starter = threading.Timer(1.0, cluster.scale, [1])
        starter.start()
        assert dict(run_parts(client, pow, 2, [3, 4])) == {0: 8, 1: 16}
        starter.join()
    assert caplog.text.count("the cluster has no worker, so this call waits") == 1


def test_a_worker_killed_while_embedding_loses_nothing(mortal, embedded, copy_of, monkeypatch, tmp_path):
    sdata = copy_of(embedded)
    expected = sdata["table"].obsm["X_color-texture"].copy()
    plain = cluster_client._result
    killed = []

    def result(future):
        if not killed:
            info = mortal.scheduler_info()["workers"]
            killed.append(next(iter(info)))
            mortal.run(lambda: os.kill(os.getpid(), signal.SIGKILL), workers=killed, on_error="return")
        return plain(future)

    monkeypatch.setattr(cluster_client, "_result", result)
    ig.pp.embed_patches(sdata, "color-texture", client=mortal, out=tmp_path / "embedded.zarr")
    assert killed
    np.testing.assert_array_equal(sdata["table"].obsm["X_color-texture"].compute(), expected)


def test_the_current_client_is_taken_and_false_takes_none(client, embedded, monkeypatch):
    check = cluster_client.Arguments()
    monkeypatch.setattr(distributed, "default_client", lambda: client)
    assert _cluster.check_client(check, None) is client and not check.messages
    assert _cluster.check_client(check, False) is None


def test_workers_do_not_ask_the_cluster_again(client):
    assert {result for _, result in run_parts(client, operator.call, partial(_client_in_worker, None), range(4))} == {
        None
    }


def _client_in_worker(shared, part):
    check = cluster_client.Arguments()
    found = _cluster.check_client(check, None)
    check.raise_all()
    return found


@pytest.mark.parametrize("value", ["tcp://host:1", 3, True])
def test_what_is_no_client_is_named(value, embedded):
    with pytest.raises(ig.Img2GeneError, match=r"client=.*expected a `distributed.Client`"):
        ig.tl.predict(embedded, "x", client=value)


def test_a_closed_client_is_named(embedded):
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as closed,
    ):
        pass
    with pytest.raises(ig.Img2GeneError, match="client: it is closed"):
        ig.tl.predict(embedded, "x", client=closed)


def test_a_worker_with_another_version_is_refused_by_name(tmp_path, embedded):
    """A worker whose Python path finds the metadata of another release first."""
    info = tmp_path / "img2gene-0.0.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: img2gene\nVersion: 0.0.7\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=logging.CRITICAL) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        worker = subprocess.Popen(
            [*command, "--no-nanny", "--nthreads", "1", "--no-dashboard"],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.DEVNULL,
        )
        try:
            client.wait_for_workers(1, timeout=60)
            own = importlib.metadata.version("img2gene")
            message = rf"other versions of img2gene \(tcp.*: 0\.0\.7\) than this process \({own}\)"
            with pytest.raises(ig.Img2GeneError, match=message):
                ig.pp.embed_patches(embedded, "color-texture", client=client)
            # A worker that joins later is noticed by itself.
            with pytest.raises(ig.Img2GeneError, match=r"A worker has img2gene 0\.0\.7"):
                list(run_parts(client, pow, 2, [3]))
        finally:
            worker.kill()
            worker.wait()


def test_importing_the_package_starts_no_cluster():
    assert "distributed" in sys.modules and cluster_client.n_threads is _cluster.n_threads
