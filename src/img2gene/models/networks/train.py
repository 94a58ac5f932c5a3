"""Training of an ensemble through Lightning: early stopping, checkpoints, resumption, and what stops a run."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from img2gene._errors import Img2GeneError
from img2gene.models.networks.checkpoints import LAST, usable_checkpoint
from img2gene.models.networks.training_task import TrainingRun, TrainingSchedule, TrainingTask
from img2gene.settings import settings

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

    Raises
    ------
    Img2GeneError
        The loss is not finite (the batch and the likely cause are named), or memory ran out; the checkpoint of the last
        good epoch stays.
    """
    # Importing sets the levels of Lightning's loggers, so it comes before they are silenced.
    import_lightning()
    # All devices are named, as leaving them out warns where there are several.
    devices = range(torch.cuda.device_count())
    with _quiet(), torch.random.fork_rng(devices), _memory_advice(schedule):
        module, trainer = _build(task, schedule, folder, label)
        last = usable_checkpoint(folder, label)
        try:
            trainer.fit(module, ckpt_path=last, weights_only=True if last else None)
        except SystemExit as exit_:
            # What Lightning makes of an interruption from the keyboard would end a notebook's kernel.
            raise KeyboardInterrupt from exit_
    return module.finish()


def _build(task: TrainingTask, schedule: TrainingSchedule, folder: Path | None, label: str) -> tuple[Any, Any]:
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
    log = _LOG.get(EpochLog())
    hardware = {"accelerator": schedule.accelerator, "devices": schedule.devices, "precision": schedule.precision}
    trainer = _trainer(
        hardware,
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
    report = partial(log.report, label) if log.loggers else None
    return TrainingModule(task, schedule, report), trainer


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
