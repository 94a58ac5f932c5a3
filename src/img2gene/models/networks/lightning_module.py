"""The Lightning module of :mod:`img2gene.models.networks.train`; importing it imports Lightning."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from img2gene._errors import Img2GeneError
from img2gene._files.folders import atomic_path
from img2gene.models.networks.checkpoints import sign
from img2gene.models.networks.training_task import TrainingRun, TrainingSchedule, TrainingTask
from img2gene.settings import tqdm_bar

# Weights start at order one and stay there; beyond this they have run away.
_LARGE_WEIGHT = 1e4


class Epoch(Iterable[Any]):
    """The batches of one epoch that one of ``n`` processes takes, each with its weight in the mean over processes.

    Batch i goes to process i modulo ``n``. Where the last step has fewer batches than processes, those that have none do the
    first one again with weight 0, because all must take the same number of steps.
    """

    def __init__(self, task: TrainingTask, number: int, rank: int = 0, n: int = 1) -> None:
        self.task, self.number, self.rank, self.n = task, number, rank, n

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        batches = self.task.batches(self.number)
        while step := list(itertools.islice(batches, self.n)):
            if self.rank < len(step):
                yield step[self.rank], self.n / len(step)
            else:
                yield step[0], 0.0


class TrainingModule(pl.LightningModule):
    """Trains the members of an ensemble side by side; keeps the weights of the best validation."""

    def __init__(
        self, task: TrainingTask, schedule: TrainingSchedule, report: Callable[[dict[str, float]], None] | None = None
    ) -> None:
        super().__init__()
        self.report = report
        self.task, self.schedule, self.ensemble = task, schedule, task.ensemble
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_score = 0, float("nan")
        self.average: dict[str, Tensor] = {}
        self.n_steps = 0
        self._sums: dict[str, Any] = {}

    def configure_optimizers(self) -> Any:
        """AdamW over all members, of which no parameter is shared; its learning rate stays, or falls along a cosine."""
        schedule = self.schedule
        optimizer = torch.optim.AdamW(
            [value for _, value in self._trained()],
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            # Not every device has a fused AdamW.
            fused=self.device.type in ("cpu", "cuda"),
        )
        if schedule.final_learning_rate is None:
            return optimizer
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=schedule.decay_epochs or schedule.max_epochs, eta_min=schedule.final_learning_rate
        )
        return {"optimizer": optimizer, "lr_scheduler": decay}

    def train_dataloader(self) -> Epoch:
        """The batches of the current epoch that this process takes."""
        return Epoch(self.task, self.current_epoch, self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> list[int]:
        """One validation step, which computes the whole score."""
        return [0] if self.task.validate is not None else []

    def on_train_start(self) -> None:
        """Checkpoints are read to the CPU."""
        self.average = {name: value.to(self.device) for name, value in self.average.items()}

    def on_train_epoch_start(self) -> None:
        """Seed the random draws of the epoch, so that they do not depend on earlier epochs, nor agree between processes."""
        # Only the lower 32 bits of a seed count on the CPU, so the processes are spread over those.
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.current_epoch + self.trainer.global_rank * 0x9E3779B9)
        self._sums = {"batches": 0}
        if self.task.prepare is not None:
            with torch.no_grad():
                self.task.prepare(self.ensemble)

    def training_step(self, weighted: tuple[Any, float], batch_idx: int) -> Tensor:
        """Sum of the members' losses: each member's gradient is its own loss's."""
        batch, weight = weighted
        losses = self.ensemble.call(self.task.loss, batch)
        if not torch.isfinite(losses["loss"]).all():
            raise Img2GeneError(self._not_finite(losses, batch, batch_idx))
        counted = weight > 0
        self._sums["batches"] += counted
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().mean() * counted
        return losses["loss"].sum() * weight

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the averaged weights: single steps are noisy where batches are few."""
        self.n_steps += 1
        # Early averages look back over fewer steps, so that initial weights fade quickly.
        rate = 1 - min(self.schedule.averaging, self.n_steps / (self.n_steps + 9))
        with torch.no_grad():
            for name, value in self._trained():
                if name in self.average:
                    self.average[name].lerp_(value, rate)
                else:
                    self.average[name] = value.detach().clone()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The ensemble with its averaged weights."""
        current = {name: value.detach().clone() for name, value in self._trained()}
        self._set(self.average)
        try:
            yield
        finally:
            self._set(current)

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Parameters that are trained: of a large network that is mostly frozen, the rest need not be copied."""
        return [(name, value) for name, value in self.ensemble.named_parameters() if value.requires_grad]

    def _set(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.ensemble.named_parameters():
                if name in values:
                    value.copy_(values[name])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score the ensemble and keep its weights if they are the best so far."""
        validate = self.task.validate
        if validate is None:
            return
        with self.averaged():
            # One score for all processes, which must keep the same weights and stop together.
            score = self.trainer.strategy.broadcast(validate(self.ensemble) if self.trainer.is_global_zero else 0.0)
            if not self.best or score > self.best_score:
                frozen = {name for name, value in self.ensemble.named_parameters() if not value.requires_grad}
                kept = {name: value for name, value in self.ensemble.state_dict().items() if name not in frozen}
                self.best = {name: value.detach().clone() for name, value in kept.items()}
                self.best_epoch, self.best_score = self.current_epoch + 1, score
        self._sums["validation"] = score
        # Loggers are told of the whole epoch, under the name of the run.
        self.log("validation", score, batch_size=1, logger=False)

    def on_train_epoch_end(self) -> None:
        """Record the epoch."""
        score = self._sums.pop("validation", None)
        count, *sums = self._over_processes([self._sums.pop("batches"), *self._sums.values()])
        entry = {"epoch": float(self.current_epoch + 1)}
        entry |= {name: value / max(count, 1) for name, value in zip(self._sums, sums, strict=True)}
        self.history.append(entry if score is None else {**entry, "validation": score})
        if self.report is not None:
            self.report(self.history[-1])

    def _over_processes(self, values: list[Any]) -> list[float]:
        """Sums of numbers over all processes."""
        plain = [float(value) for value in values]
        if self.trainer.world_size == 1:
            return plain
        total: Tensor = self.trainer.strategy.reduce(
            torch.tensor(plain, dtype=torch.float64, device=self.device), reduce_op="sum"
        )
        return total.tolist()

    def _not_finite(self, losses: dict[str, Tensor], batch: Any, batch_idx: int) -> str:
        parts = [name for name, value in losses.items() if name != "loss" and not torch.isfinite(value).all()]
        rate = self.schedule.learning_rate
        grown = bool(self.history) and self.history[-1]["loss"] > 10 * min(entry["loss"] for entry in self.history)
        # NaN is not below any bound.
        if grown or not all(value.abs().max() < _LARGE_WEIGHT for value in self.ensemble.parameters()):
            cause = f"The training diverged: learning_rate={rate} is too high."
        elif self.schedule.precision.startswith("16"):
            cause = "Likely float16 overflowed: use precision='bf16-mixed' or '32-true'."
        else:
            cause = f"Likely labels or features of extreme size in these spots, or too high a learning_rate ({rate})."
        path, number = self._kept(), batch_idx * self.trainer.world_size + self.trainer.global_rank + 1
        kept = f"The checkpoint of the last good epoch is {path}." if path else "No model was stored."
        return (
            f"The loss ({', '.join(parts) or 'total'}) is not finite in epoch {self.current_epoch + 1}, batch {number}: "
            f"{self.task.describe(batch)}. {cause} {kept}"
        )

    def _kept(self) -> Path | None:
        paths = [callback.path for callback in self.trainer.callbacks if isinstance(callback, LastEpoch)]  # type: ignore[attr-defined]
        return next((path for path in paths if path.is_file()), None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that a resumed run needs: best weights so far, averages, and history."""
        checkpoint["img2gene"] = {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "average": self.average,
            "n_steps": self.n_steps,
            "history": self.history,
            "stopped": bool(self.trainer.should_stop),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of an interrupted run."""
        stored = checkpoint["img2gene"]
        self.best, self.history = stored["best"], list(stored["history"])
        self.best_epoch, self.best_score = stored["best_epoch"], stored["best_score"]
        self.average, self.n_steps = stored["average"], stored["n_steps"]
        if stored["stopped"]:
            self.trainer.fit_loop.max_epochs = len(self.history)

    def finish(self) -> TrainingRun:
        """Put the best weights into the ensemble, the averaged ones where there was no validation."""
        if self.best:
            self.ensemble.load_state_dict(self.best, strict=False)
        else:
            self._set(self.average)
        self.ensemble.cpu().eval()
        return TrainingRun(self.best_epoch or len(self.history), self.best_score, self.history)


class LastEpoch(pl.callbacks.Checkpoint):
    """Writes a checkpoint after each epoch, renamed when complete so that an interruption leaves the one before."""

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint, from the first process only; Lightning calls this hook after the one of the module."""
        if not trainer.is_global_zero:
            # It writes nothing here, and waits for the first process.
            trainer.save_checkpoint(self.path)
            return
        with atomic_path(self.path) as temporary:
            try:
                trainer.save_checkpoint(temporary)
            except RuntimeError as error:
                # PyTorch reports a full disk by an error of its own.
                raise OSError(str(error).splitlines()[0]) from error
            sign(temporary, self.path.parent, self.label)


class EpochBar(pl.Callback):
    """One bar over the epochs."""

    def __init__(self, label: str) -> None:
        self.label, self.bar = label, None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self.bar = tqdm_bar(total=trainer.max_epochs, initial=trainer.current_epoch, desc=self.label, unit="epoch")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Advance the bar by one epoch."""
        if self.bar is not None:
            self.bar.update()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that what is printed next has a line of its own."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
