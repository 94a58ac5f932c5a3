"""Training in several processes: what it computes, that the processes agree, what stops it, and how it goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene.models.networks import fitting as network_fitting
from img2gene.models.networks.ensemble import Ensemble
from img2gene.models.networks.layers import Linear
from img2gene.models.networks.train import LAST, log_to, n_processes, train
from img2gene.models.networks.training_task import TrainingSchedule, TrainingTask

N_BATCHES, SIZE, WIDTH = 4, 8, 3
RNG = np.random.default_rng(0)
WEIGHT = torch.from_numpy(RNG.normal(size=(WIDTH, 2)).astype(np.float32))
HELD_OUT = torch.from_numpy(RNG.normal(size=(20, WIDTH)).astype(np.float32))


def loss(net, batch):
    return {"loss": (net(batch[0]) - batch[1]).square().mean()}


def score(ensemble):
    with torch.no_grad():
        return -float((ensemble(HELD_OUT).mean(dim=0) - HELD_OUT @ WEIGHT).square().mean())


def pairs(epoch, n=N_BATCHES):
    rng = np.random.default_rng([7, epoch])
    for _ in range(n):
        x = torch.from_numpy(rng.normal(size=(SIZE, WIDTH)).astype(np.float32))
        yield x, x @ WEIGHT


def joined(n):
    """The batches of :func:`pairs`, two by two, the last one alone if it has no partner."""

    def batches(epoch):
        waiting = []
        for batch in pairs(epoch, n):
            waiting.append(batch)
            if len(waiting) == 2:
                yield tuple(map(torch.cat, zip(*waiting, strict=True)))
                waiting = []
        yield from waiting

    return batches


def task(**changes):
    values = {"batches": pairs, "loss": loss, "validate": score, "describe": lambda batch: f"{len(batch[0])} rows"}
    return TrainingTask(Ensemble(lambda: Linear(WIDTH, 2), 2, seed=0), **(values | changes))


def schedule(**changes):
    return TrainingSchedule(**({"max_epochs": 4, "learning_rate": 0.05, "averaging": 0.8} | changes))


def together(**changes):
    return schedule(devices=2, **changes)


def weights(trained):
    return {name: value.numpy().copy() for name, value in trained.ensemble.state_dict().items()}


def assert_same_weights(one, two):
    for name, value in weights(one).items():
        np.testing.assert_allclose(value, weights(two)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [4, 3])
@pytest.mark.parametrize("validated", [True, False])
def test_two_processes_are_one_with_batches_twice_as_large(n, validated):
    # The mean of the gradients of two equal batches is the gradient of both batches at once.
    validate = score if validated else None
    alone, both = (
        task(batches=joined(n), validate=validate),
        task(batches=lambda epoch: pairs(epoch, n), validate=validate),
    )
    expected, run = train(alone, schedule()), train(both, together())
    assert_same_weights(both, alone)
    assert run.best_epoch == expected.best_epoch
    assert len(run.history) == len(expected.history)
    if n == 4:
        for entry, other in zip(run.history, expected.history, strict=True):
            assert entry == pytest.approx(other, rel=1e-4)


def test_the_history_holds_means_over_the_batches_of_all_processes():
    def recorded(net, batch):
        return loss(net, batch) | {"mean": batch[0].mean()}

    run = train(task(loss=recorded, batches=lambda epoch: pairs(epoch, 3)), together(max_epochs=2))
    seen = [np.mean([float(x.mean()) for x, _ in pairs(epoch, 3)]) for epoch in range(2)]
    assert [entry["mean"] for entry in run.history] == pytest.approx(seen, rel=1e-5)


def test_processes_hold_the_same_weights_and_draw_different_numbers(tmp_path):
    def written(ensemble):
        rank = torch.distributed.get_rank()
        values = [value.flatten() for value in ensemble.parameters()]
        number = len(list(tmp_path.glob(f"weights{rank}-*")))
        np.save(tmp_path / f"weights{rank}-{number}.npy", torch.cat(values).numpy())
        np.save(tmp_path / f"draws{rank}-{number}.npy", torch.rand(3).numpy())

    train(task(prepare=written), together(max_epochs=3))
    for epoch in range(3):
        one, two = (np.load(tmp_path / f"weights{rank}-{epoch}.npy") for rank in (0, 1))
        np.testing.assert_array_equal(one, two)
        one, two = (np.load(tmp_path / f"draws{rank}-{epoch}.npy") for rank in (0, 1))
        assert not np.array_equal(one, two)


def test_an_error_of_one_process_is_raised_as_it_is(tmp_path):
    def spoiled(epoch):
        for i, (x, y) in enumerate(pairs(epoch)):
            yield x, y * (torch.nan if (epoch, i) == (2, 1) else 1)

    with pytest.raises(
        Img2GeneError, match=rf"not finite in epoch 3, batch 2: 8 rows.*last good epoch is {tmp_path / LAST}"
    ):
        train(task(batches=spoiled), together(), folder=tmp_path)
    # It goes on from the epoch before, and the result is that of a run without the fault.
    again, whole = task(), task()
    found, expected = train(again, together(), folder=tmp_path), train(whole, together())
    assert found == expected
    assert_same_weights(again, whole)
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_errors_of_other_types_come_through_with_the_process_in_which_they_happened():
    def broken(epoch):
        yield from pairs(epoch, 2)
        if torch.distributed.get_rank() == 1:
            raise LookupError("no such spot")
        yield from pairs(epoch, 2)

    with pytest.raises(LookupError, match="no such spot") as caught:
        train(task(batches=broken), together())
    assert "In training process 2" in caught.value.__notes__[0]


def test_what_cannot_be_sent_is_told():
    lock = threading.Lock()
    with pytest.raises(Img2GeneError, match="cannot be sent to several processes.*devices=1"):
        train(task(describe=lambda batch: str(lock)), together())


def test_loggers_and_the_bar_see_every_epoch(tmp_path, monkeypatch, capfd):
    import pandas as pd
    from lightning.pytorch.loggers import CSVLogger

    monkeypatch.setattr(ig.settings, "progress", True)
    with log_to([CSVLogger(tmp_path, name="", version="")]) as log:
        run = train(task(), together(), label="shared")
    assert log.n_epochs == 4
    written = pd.read_csv(tmp_path / "metrics.csv")
    assert written["shared/loss"].tolist() == pytest.approx([entry["loss"] for entry in run.history], rel=1e-6)
    assert "shared: 100%" in capfd.readouterr().err


SCRIPT = """
import os, sys, time
from pathlib import Path
import numpy as np, torch
import img2gene as ig
from img2gene.models.networks.ensemble import Ensemble
from img2gene.models.networks.layers import Linear
from img2gene.models.networks.train import train
from img2gene.models.networks.training_task import TrainingSchedule, TrainingTask

ARGUMENTS = sys.argv[1:]

class Data:
    def batches(self, epoch):
        if ARGUMENTS[1:] and epoch == 3:
            Path(ARGUMENTS[0], f"pid{torch.distributed.get_rank()}").write_text(str(os.getpid()))
            time.sleep(600)
        rng = np.random.default_rng(epoch)
        return iter([torch.from_numpy(rng.normal(size=(4, 2)).astype("float32")) for _ in range(2)])

def fit(folder):
    ig.settings.progress = False
    ensemble = Ensemble(lambda: Linear(2, 1), 1, seed=0)
    task = TrainingTask(ensemble, Data().batches, lambda net, x: {"loss": net(x).square().mean()})
    return train(task, TrainingSchedule(5, devices=2), folder=folder).history

if ARGUMENTS:
    print(fit(Path(ARGUMENTS[0]) / "run"))
"""


def test_a_killed_script_without_a_main_guard_leaves_no_process_and_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    command = [sys.executable, str(path), str(tmp_path)]
    running = subprocess.Popen([*command, "slow"], stdout=subprocess.DEVNULL)
    pids = [tmp_path / f"pid{rank}" for rank in (0, 1)]
    deadline = time.monotonic() + 120
    while not all(pid.is_file() and pid.read_text() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.kill()
    running.wait()
    deadline = time.monotonic() + 10
    while any(_alive(int(pid.read_text())) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(int(pid.read_text())) for pid in pids)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    monkeypatch.setattr(sys, "argv", ["script"])
    here = {"__name__": "script"}
    exec(SCRIPT, here)
    # One line: the processes do not run the script again.
    assert again.stdout == f"{here['fit'](None)}\n"


def _alive(pid):
    try:
        # A process that nobody waits for stays as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", ["img2gene", "cmrcnet"])
def test_models_fit_in_two_processes(name, tmp_path):
    n, rng = 96, np.random.default_rng(3)
    features = rng.normal(size=(n, 8)).astype(np.float32)
    data = ig.models.TrainingData(
        features=features,
        labels=(features @ rng.normal(size=(8, 4)) + rng.normal(size=(n, 4))).astype(np.float32),
        sections=np.repeat(["a", "b", "c"], n // 3),
        groups=np.repeat(["a", "b", "c"], n // 3),
        positions=np.tile(np.stack(np.divmod(np.arange(n // 3), 6), axis=1) * 100.0, (3, 1)),
    )
    quick = {
        "dim": 8,
        "heads": 1,
        "n_components": 4,
        "max_epochs": 3,
        "batch_size": 16,
        "n_models": 1,
        "n_validations": 1,
    }
    options = {**quick, "accelerator": "cpu", "devices": 2}
    model = ig.models.create(name, **options, checkpoint_dir=tmp_path)
    model.fit(data, seed=0)
    again = ig.models.create(name, **options)
    again.fit(data, seed=0)
    assert model.history_ == again.history_
    for one, two in zip(model.state()[1].values(), again.state()[1].values(), strict=True):
        np.testing.assert_array_equal(one, two)
    # Steps of one process would follow other gradients.
    with pytest.raises(Img2GeneError, match="devices"):
        ig.models.create(name, **(options | {"devices": 1}), checkpoint_dir=tmp_path).fit(data, seed=0)


@pytest.mark.parametrize(("variable", "launcher"), [("WORLD_SIZE", "torchrun"), ("SLURM_STEP_NUM_TASKS", "srun")])
def test_processes_that_a_launcher_started_do_not_start_others(variable, launcher, monkeypatch):
    monkeypatch.setenv(variable, "2")
    with pytest.raises(Img2GeneError, match=f"{launcher} has started 2 processes.*Start the script once, by `python`"):
        network_fitting.resolve_accelerator("cpu", 2)
    assert network_fitting.resolve_accelerator("cpu", 1) == ("cpu", 1)


def test_one_process_takes_no_notice_of_the_environment_of_a_job(monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "fit", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    inside, outside = task(), task()
    run = train(inside, schedule())
    monkeypatch.undo()
    assert run == train(outside, schedule())


def test_number_of_processes():
    counts = {1: 1, 2: 2, "3": 3, "auto": 1, "x": 1}
    assert {devices: n_processes("cpu", devices) for devices in counts} == counts
    assert n_processes("mps", 2) == 1
    assert replace(schedule(), devices=2) == together()


def test_a_process_that_is_killed_ends_the_training():
    def killed(epoch):
        if torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from pairs(epoch)

    with pytest.raises(Img2GeneError, match="Training process 2 of 2 ended by itself .exit code -9.*fewer `devices`"):
        train(task(batches=killed), together())


def test_an_interruption_from_the_keyboard_ends_all_processes(tmp_path):
    class Impatient:
        def log_metrics(self, values, step):
            if step == 2:
                raise KeyboardInterrupt

        def finalize(self, status):
            (tmp_path / status).touch()

    def noted(ensemble):
        # A process that ends in the middle leaves no file without a number.
        name = f"pid{torch.distributed.get_rank()}"
        (tmp_path / f"part_{name}").write_text(str(os.getpid()))
        (tmp_path / f"part_{name}").replace(tmp_path / name)

    with pytest.raises(KeyboardInterrupt), log_to([Impatient()]):
        train(task(prepare=noted), together(max_epochs=10_000))
    assert (tmp_path / "failed").is_file()
    pids = [int(path.read_text()) for path in tmp_path.glob("pid?")]
    assert pids and not any(_alive(pid) for pid in pids)
