"""Training of an ensemble through Lightning: early stopping, checkpoints, resumption, and what stops a run."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from img2gene._errors import Img2GeneError
from img2gene.models.networks.checkpoints import LAST, usable_checkpoint
from img2gene.models.networks.ranks import train_on_ranks
from img2gene.models.networks.training_task import TrainingRun, TrainingSchedule, TrainingTask
from img2gene.settings import settings, tqdm_bar

logger = logging.getLogger(__name__)


@dataclass
class EpochLog:
    """Loggers of Lightning that every training run reports to, and how many epochs they were told of."""

    loggers: Sequence[Any] = ()
    n_epochs: int = 0

    def report(self, label: str, epoch: dict[str, float]) -> None:
        """Report the losses and the validation score of an epoch of the training run ``label``."""
        self.n_epochs += 1
        values = {f"{label}/{name}": value for name, value in epoch.items() if name != "epoch"}
        for one in self.loggers:
            one.log_metrics(values, step=int(epoch["epoch"]))

    @contextlib.contextmanager
    def followed(self, label: str, n_epochs: int) -> Iterator[Callable[[dict[str, float]], None]]:
        """Yield what to call with each epoch of a run in other processes: it moves a bar and tells the loggers."""
        bar, status = tqdm_bar(total=n_epochs, desc=label, unit="epoch", disable=not settings.progress), "failed"

        def follow(epoch: dict[str, float]) -> None:
            bar.update(int(epoch["epoch"]) - bar.n)
            if self.loggers:
                self.report(label, epoch)

        try:
            yield follow
            status = "success"
        finally:
            bar.close()
            # Lightning does so where it trains in this process.
            for one in self.loggers:
                one.finalize(status)


# A context and no argument, as models of every kind are fitted through one interface that knows no epochs.
_LOG: ContextVar[EpochLog] = ContextVar("img2gene_epoch_log")


@contextlib.contextmanager
def log_to(loggers: Sequence[Any]) -> Iterator[EpochLog]:
    """Report the epochs of all training runs within to loggers of Lightning."""
    log = EpochLog(loggers)
    token = _LOG.set(log)
    try:
        yield log
    finally:
        _LOG.reset(token)


def train(
    task: TrainingTask, schedule: TrainingSchedule, *, folder: Path | None = None, label: str = "train"
) -> TrainingRun:
    """Train an ensemble and restore the weights of the best validation.

    With a ``folder``, a checkpoint is written there after each epoch, and a run that was interrupted goes on from it to the
    result of an uninterrupted one: everything random is drawn from the seed and the number of the epoch.

    With n devices, n processes of this computer train together: each takes every n-th batch of an epoch, and each step follows
    the mean of their gradients, as if batches were n times as large.

    Raises
    ------
    Img2GeneError
        The loss is not finite (the batch and the likely cause are named), or memory ran out; the checkpoint of the last
        good epoch stays.
    """
    checkpoint, log = usable_checkpoint(folder, label), _LOG.get(EpochLog())
    n = n_processes(schedule.accelerator, schedule.devices)
    if n == 1:
        report = partial(log.report, label) if log.loggers else None
        return fit_here(task, schedule, folder=folder, checkpoint=checkpoint, label=label, report=report, log=log)
    with log.followed(label, schedule.max_epochs) as follow:
        return train_on_ranks(task, schedule, n, folder=folder, checkpoint=checkpoint, label=label, report=follow)


def fit_here(
    task: TrainingTask,
    schedule: TrainingSchedule,
    *,
    folder: Path | None,
    checkpoint: Path | None,
    label: str,
    report: Callable[[dict[str, float]], None] | None,
    log: EpochLog | None = None,
    together: bool = False,
) -> TrainingRun:
    """Train in this process, ``together`` with others that do the same; ``report`` gets each epoch."""
    # Importing sets the levels of Lightning's loggers, so it comes before they are silenced.
    import_lightning()
    # All devices are named, as leaving them out warns where there are several.
    devices = range(torch.cuda.device_count())
    with _quiet(), torch.random.fork_rng(devices), _memory_advice(schedule):
        module, trainer = _build(task, schedule, folder, label, report, log or EpochLog(), together)
        try:
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        except SystemExit as exit_:
            # What Lightning makes of an interruption from the keyboard would end a notebook's kernel.
            raise KeyboardInterrupt from exit_
    return module.finish()


def _build(
    task: TrainingTask,
    schedule: TrainingSchedule,
    folder: Path | None,
    label: str,
    report: Callable[[dict[str, float]], None] | None,
    log: EpochLog,
    together: bool,
) -> tuple[Any, Any]:
    lightning = import_lightning()
    from img2gene.models.networks.lightning_module import EpochBar, LastEpoch, TrainingModule

    callbacks: list[Any] = []
    if task.validate is not None:
        callbacks.append(lightning.callbacks.EarlyStopping("validation", mode="max", patience=schedule.patience))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        callbacks.append(LastEpoch(folder / LAST, label))
    if settings.progress:
        callbacks.append(EpochBar(label))
    hardware = {"accelerator": schedule.accelerator, "devices": schedule.devices, "precision": schedule.precision}
    trainer = _trainer(
        hardware,
        **_place(together),
        max_epochs=schedule.max_epochs,
        check_val_every_n_epoch=schedule.validate_every,
        callbacks=callbacks,
        logger=list(log.loggers) or False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
    )
    return TrainingModule(task, schedule, report), trainer


def _place(together: bool) -> dict[str, Any]:
    """Options of a trainer in one process, or in one of several that were started for it.

    The environment is named, so that a job of SLURM or torchrun is not taken for processes that train together.
    """
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    options: dict[str, Any] = {"plugins": [LightningEnvironment()]}
    # Some losses leave parts of a network out, which then have no gradient to wait for.
    return options | {"strategy": DDPStrategy(find_unused_parameters=True)} if together else options


def _trainer(hardware: dict[str, Any], **options: Any) -> Any:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        return import_lightning().Trainer(**hardware, **options)
    except (MisconfigurationException, TypeError, ValueError) as error:
        requested = ", ".join(f"{name}={value!r}" for name, value in hardware.items())
        raise Img2GeneError(f"Networks cannot be trained with {requested}: {error}") from error


def accelerators() -> dict[str, bool]:
    """Names of Lightning's accelerators, and whether there is such a device; ``"gpu"`` is CUDA or MPS."""
    import_lightning()
    from lightning.pytorch.accelerators import AcceleratorRegistry

    available = {name: AcceleratorRegistry[name]["accelerator"].is_available() for name in AcceleratorRegistry}
    return available | {"gpu": available.get("cuda", False) or available.get("mps", False)}


def n_processes(accelerator: str, devices: int | str | list[int]) -> int:
    """Return the number of processes that train together: one for each device, on the CPU as many as ``devices`` says."""
    if devices in (1, "1") or accelerator not in ("cpu", "gpu", "cuda"):
        return 1
    import_lightning()
    from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    kind: Any = CPUAccelerator if accelerator == "cpu" else CUDAAccelerator
    try:
        number = kind.auto_device_count() if devices == "auto" else devices
        return max(len(kind.get_parallel_devices(kind.parse_devices(number)) or ()), 1)
    except (MisconfigurationException, TypeError, ValueError):
        # The trainer says what is wrong with them.
        return 1


def import_lightning() -> Any:
    """Lightning, or an error that says what is wrong with its installation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lightning.pytorch as pl
    except (ImportError, RuntimeError) as error:
        raise Img2GeneError(
            f"Lightning, which trains networks, cannot be imported: {error}. If this names torchvision, its build does not "
            "match torch: install the matching one, or `pip uninstall torchvision`."
        ) from error
    return pl


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's banners and its advice about data loaders, which does not apply to arrays in memory."""
    names = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [lightning_logger.level for lightning_logger in loggers]
    for lightning_logger in loggers:
        lightning_logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # Processes that train together copy the gradients of stacked weights once more.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        try:
            yield
        finally:
            for lightning_logger, level in zip(loggers, levels, strict=True):
                lightning_logger.setLevel(level)


@contextlib.contextmanager
def _memory_advice(schedule: TrainingSchedule) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        # On other devices than CUDA's it is a plain RuntimeError.
        if not known and not any(hint in str(error).lower() for hint in ("out of memory", "allocate memory")):
            raise
        raise Img2GeneError(
            f"Memory ran out while training in precision {schedule.precision!r} on {schedule.accelerator}: {error}. Lower "
            "`batch_size`, `n_models` or the number of genes, or use `precision='bf16-mixed'`."
        ) from error
