"""Training: what it learns, that an interruption changes nothing, what stops it, and what it leaves alone."""

import logging
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene.models.networks import train as training
from img2gene.models.networks.ensemble import Ensemble
from img2gene.models.networks.fitting import planned_epochs
from img2gene.models.networks.layers import FeedForward, Linear
from img2gene.models.networks.train import LAST, train
from img2gene.models.networks.training_task import TrainingSchedule, TrainingTask

WIDTH, N_GENES, N_BATCHES = 4, 2, 4
RNG = np.random.default_rng(0)
WEIGHT = torch.from_numpy(RNG.normal(size=(WIDTH, N_GENES)).astype(np.float32))
HELD_OUT = torch.from_numpy(RNG.normal(size=(40, WIDTH)).astype(np.float32))


class Killed(Exception):
    """Stands for whatever ends a process."""


def network():
    return torch.nn.Sequential(FeedForward(WIDTH, dropout=0.1), Linear(WIDTH, N_GENES))


def batches(epoch):
    rng = np.random.default_rng([1, epoch])
    for _ in range(N_BATCHES):
        x = torch.from_numpy(rng.normal(size=(16, WIDTH)).astype(np.float32))
        yield x, x @ WEIGHT


def loss(net, batch):
    x, y = batch
    error = (net(x) - y).square().mean()
    return {"loss": error, "labels": error}


def score(ensemble):
    with torch.no_grad():
        found = ensemble.eval()(HELD_OUT).mean(dim=0)
    ensemble.train()
    return -float((found - HELD_OUT @ WEIGHT).square().mean())


def task(**changes):
    values = {"batches": batches, "loss": loss, "validate": score, "describe": lambda batch: f"{len(batch[0])} rows"}
    return TrainingTask(Ensemble(network, 2, seed=0), **(values | changes))


def schedule(**changes):
    return TrainingSchedule(**({"max_epochs": 6, "learning_rate": 0.02, "averaging": 0.8} | changes))


def weights(found):
    return {name: value.numpy().tobytes() for name, value in found.ensemble.state_dict().items()}


def raising(error, epoch, batch=1):
    """The batches, until one raises."""

    def interrupted(number):
        for i, values in enumerate(batches(number)):
            if (number, i) == (epoch, batch):
                raise error
            yield values

    return interrupted


def test_a_linear_map_is_learnt():
    learnt = task()
    run = train(learnt, schedule(max_epochs=60, learning_rate=0.03))
    assert score(learnt.ensemble) > -0.02 * float((HELD_OUT @ WEIGHT).square().mean())
    assert run.score == score(learnt.ensemble) == max(entry["validation"] for entry in run.history)
    assert run.history[run.best_epoch - 1]["validation"] == run.score
    assert run.history[-1]["loss"] < 0.1 * run.history[0]["loss"]


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not():
    one, two, other = task(), task(), task()
    runs = [train(one, schedule()), train(two, schedule()), train(other, schedule(seed=1))]
    assert weights(one) == weights(two)
    assert runs[0] == runs[1]
    # the data are the same, but dropout is not
    assert weights(one) != weights(other)


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("epoch", [0, 3])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, epoch, validated):
    options = {} if validated else {"validate": None}
    whole = task(**options)
    expected = train(whole, schedule(validate_every=2))
    with pytest.raises(Killed):
        train(task(batches=raising(Killed(), epoch), **options), schedule(validate_every=2), folder=tmp_path)
    assert (tmp_path / LAST).is_file() == (epoch > 0)
    again = task(**options)
    found = train(again, schedule(validate_every=2), folder=tmp_path)
    assert weights(again) == weights(whole)
    assert found.history == expected.history
    assert found.best_epoch == expected.best_epoch


def test_epochs_that_are_finished_are_not_trained_again(tmp_path):
    with pytest.raises(Killed):
        train(task(batches=raising(Killed(), 4)), schedule(), folder=tmp_path)
    seen = []
    train(task(prepare=lambda ensemble: seen.append(1)), schedule(), folder=tmp_path)
    assert len(seen) == 2


def stopping(ensemble):
    """Best in the third validation."""
    scores.append(1)
    return -abs(len(scores) - 3.0)


scores: list = []


@pytest.mark.parametrize("validate_every", [1, 2])
def test_training_stops_when_nothing_improves_and_stays_stopped(tmp_path, validate_every):
    plan = schedule(max_epochs=30, patience=2, validate_every=validate_every)
    whole, again = task(validate=stopping), task(validate=stopping)
    scores.clear()
    expected = train(whole, plan, folder=tmp_path)
    assert expected.best_epoch == 3 * validate_every
    assert len(expected.history) == 5 * validate_every
    # the process was killed after that, before the result was written elsewhere
    found = train(again, plan, folder=tmp_path)
    assert len(scores) == 5
    assert found == expected
    assert weights(again) == weights(whole)


def test_patience_goes_on_counting_after_an_interruption(tmp_path):
    plan = schedule(max_epochs=30, patience=2)
    scores.clear()
    with pytest.raises(Killed):
        train(task(validate=stopping, batches=raising(Killed(), 4)), plan, folder=tmp_path)
    assert len(train(task(validate=stopping), plan, folder=tmp_path).history) == 5


def test_the_best_weights_are_kept_and_not_the_last():
    scores.clear()
    best, three = task(validate=stopping), task(validate=None)
    train(best, schedule(max_epochs=6, patience=9))
    train(three, schedule(max_epochs=3))
    # without validation the averaged weights of the last epoch are kept
    assert weights(best) == weights(three)


def nan_in(epoch, batch):
    def spoiled(number):
        for i, (x, y) in enumerate(batches(number)):
            yield x, y * (torch.nan if (number, i) == (epoch, batch) else 1)

    return spoiled


def test_a_loss_that_is_not_finite_names_batch_and_cause_and_the_checkpoint_stays(tmp_path):
    with pytest.raises(
        Img2GeneError,
        match=rf"The loss \(labels\) is not finite in epoch 3, batch 2: 16 rows. Likely labels or features of extreme size.*"
        rf"checkpoint of the last good epoch is {tmp_path / LAST}",
    ):
        train(task(batches=nan_in(2, 1)), schedule(), folder=tmp_path)
    good = task()
    found = train(good, schedule(), folder=tmp_path)
    whole = task()
    assert found == train(whole, schedule())
    assert weights(good) == weights(whole)


def test_a_training_that_diverges_is_told_so():
    with pytest.raises(
        Img2GeneError,
        match=r"not finite in epoch \d+, batch \d+: .*learning_rate=1e\+30 is too high. No model was stored",
    ):
        train(task(), schedule(learning_rate=1e30))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA: no more"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)  # fmt: skip
def test_what_to_do_when_memory_runs_out(error):
    with pytest.raises(
        Img2GeneError,
        match="Memory ran out while training in precision '32-true' on cpu.*Lower `batch_size`, `n_models` or the number of genes",
    ):
        train(task(batches=raising(error, 1)), schedule())


def test_other_errors_come_through_as_they_are():
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        train(task(batches=raising(RuntimeError("shapes differ"), 1)), schedule())


def test_an_interruption_from_the_keyboard_is_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(task(batches=raising(KeyboardInterrupt(), 2)), schedule(), folder=tmp_path)
    found, whole = task(), task()
    assert train(found, schedule(), folder=tmp_path) == train(whole, schedule())
    assert weights(found) == weights(whole)


def test_nothing_global_is_touched(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    names = ["lightning", *(name for name in logging.root.manager.loggerDict if name.startswith("lightning"))]

    def state():
        levels = {name: logging.getLogger(name).level for name in names}
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(), levels

    training.import_lightning()
    before, filters = state(), list(warnings.filters)
    train(task(), schedule())
    with pytest.raises(Img2GeneError):
        train(task(batches=nan_in(1, 1)), schedule())
    assert state() == before
    assert list(warnings.filters) == filters
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_holds_one_checkpoint_and_nothing_else(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    train(task(), schedule(), folder=tmp_path / "a" / "b")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [LAST]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert capfd.readouterr() == ("", "")


FRESH = """
import torch
from img2gene import settings
from img2gene.models.networks.ensemble import Ensemble
from img2gene.models.networks.layers import Linear
from img2gene.models.networks.training_task import TrainingSchedule, TrainingTask
from img2gene.models.networks.train import train

settings.progress = False
ensemble = Ensemble(lambda: Linear(2, 1), 1, seed=0)
data = [torch.ones(3, 2)] * 2
train(TrainingTask(ensemble, lambda epoch: iter(data), lambda net, x: {"loss": net(x).square().mean()}), TrainingSchedule(2))
"""


def test_the_first_training_of_a_process_is_silent_too(tmp_path):
    found = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:img2gene", "-c", FRESH], capture_output=True, text=True, cwd=tmp_path
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_bar_shows_progress_unless_it_is_switched_off(monkeypatch, capfd):
    monkeypatch.setattr(ig.settings, "progress", True)
    train(task(), schedule(), label="my run")
    assert "my run: 100%" in capfd.readouterr().err
    with pytest.raises(Killed):
        train(task(batches=raising(Killed(), 2)), schedule())
    # closed: the next line starts at its beginning
    assert capfd.readouterr().err.endswith("\n")


def test_a_broken_lightning_is_told_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(
        Img2GeneError, match="Lightning, which trains networks, cannot be imported: .*If this names torchvision"
    ):
        train(task(), schedule())


def test_every_epoch_is_prepared_without_gradients():
    seen = []
    train(task(prepare=lambda ensemble: seen.append(torch.is_grad_enabled())), schedule(max_epochs=3))
    assert seen == [False] * 3


def test_half_precision_learns_too():
    learnt = task()
    train(learnt, schedule(max_epochs=30, precision="bf16-mixed"))
    assert score(learnt.ensemble) > -0.1 * float((HELD_OUT @ WEIGHT).square().mean())


@pytest.mark.parametrize("name", ["knn", "bleep", "cmrcnet", "img2gene"])
@pytest.mark.parametrize("size", [1.0, 1e-30], ids=["constant", "rounding error"])
def test_features_that_do_not_vary_are_refused_before_training(name, size):
    n = 60
    data = ig.models.TrainingData(
        features=np.full((n, 5), size, dtype=np.float32) * (1 if size == 1 else RNG.random((n, 5), dtype=np.float32)),
        labels=RNG.random((n, 4), dtype=np.float32),
        sections=np.repeat(["A", "B"], n // 2),
        groups=np.repeat(["A", "B"], n // 2),
        positions=np.stack(np.divmod(np.arange(n), 6), axis=1) * 100.0,
    )
    with pytest.raises(Img2GeneError, match="do not vary between the training spots of a section.*choose `ridge`"):
        ig.models.create(name).fit(data, seed=0)


@pytest.mark.parametrize(
    ("n_batches", "epochs"),
    [(1, 150), (6, 50), (25, 12), (37, 12), (50, 9), (94, 5), (300, 2), (10_000, 1)],
)
def test_few_spots_train_for_as_many_steps_and_many_spots_for_at_most_half_as_many_again(n_batches, epochs):
    assert planned_epochs(300, n_batches) == epochs
