"""Damage stored models in every way, and check that each is refused or predicts the same."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from safetensors import SafetensorError
from safetensors.numpy import load, save
from spatialdata import SpatialData

import img2gene as ig
from img2gene import Img2GeneError
from img2gene.models import Model
from img2gene.models.stored import digests
from reliability import functions, studies
from reliability.content import content
from reliability.json_changes import change_json
from reliability.tally import Outcome, describe

Rng = np.random.Generator
Change = tuple[bytes, str]
DTYPES = ("u1", "i1", "u2", "i2", "f2", "i4", "u4", "f4", "i8", "u8", "f8", "?")
POISONS = (0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-30)


def header_length(data: bytes) -> int:
    """Return the length of the head of a safetensors file: eight bytes, and the JSON that they announce."""
    return 8 + int.from_bytes(data[:8], "little")


def flip_bit(data: bytes, rng: Rng) -> Change:
    """Flip one bit anywhere."""
    return _flip(data, int(rng.integers(len(data))), rng)


def flip_header_bit(data: bytes, rng: Rng) -> Change:
    """Flip one bit in the head, which names shapes and types."""
    return _flip(data, int(rng.integers(min(len(data), header_length(data)))), rng)


def _flip(data: bytes, place: int, rng: Rng) -> Change:
    bit = int(rng.integers(8))
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {place}"


def cut(data: bytes, rng: Rng) -> Change:
    """Leave only the beginning."""
    length = int(rng.integers(len(data)))
    return data[:length], f"first {length} of {len(data)} bytes"


def splice(data: bytes, rng: Rng) -> Change:
    """Write a run of equal or random bytes over some place."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
    filling = bytes(length) if rng.integers(2) else rng.bytes(length)
    return data[:start] + filling + data[start + length :], f"{length} bytes from {start}"


def _in_tensors(change: Callable[[dict[str, np.ndarray], Rng], str]) -> Callable[[bytes, Rng], Change]:
    def changed(data: bytes, rng: Rng) -> Change:
        arrays = {name: values.copy() for name, values in load(data).items()}
        detail = change(arrays, rng)
        head = json.loads(data[8 : header_length(data)])
        return save(arrays, metadata=head.get("__metadata__")), detail

    changed.__name__ = change.__name__.lstrip("_")
    return changed


def _pick(arrays: dict[str, np.ndarray], rng: Rng) -> str:
    return sorted(arrays)[rng.integers(len(arrays))]


def _swap_tensors(arrays: dict[str, np.ndarray], rng: Rng) -> str:
    one, other = (_pick(arrays, rng) for _ in range(2))
    arrays[one], arrays[other] = arrays[other], arrays[one]
    return f"{one} and {other}"


def _swap_alike_tensors(arrays: dict[str, np.ndarray], rng: Rng) -> str:
    one = _pick(arrays, rng)
    alike = [name for name, values in arrays.items() if values.shape == arrays[one].shape]
    other = alike[rng.integers(len(alike))]
    arrays[one], arrays[other] = arrays[other], arrays[one]
    return f"{one} and {other}"


def _reinterpret(arrays: dict[str, np.ndarray], rng: Rng) -> str:
    name, dtype = _pick(arrays, rng), np.dtype(DTYPES[rng.integers(len(DTYPES))])
    values = arrays[name]
    same_size = values.dtype.itemsize == dtype.itemsize and values.ndim and rng.integers(2)
    arrays[name] = values.view(dtype) if same_size else values.astype(dtype)
    return f"{name} as {dtype}"


def _poison(arrays: dict[str, np.ndarray], rng: Rng) -> str:
    name, poison = _pick(arrays, rng), POISONS[rng.integers(len(POISONS))]
    everywhere = bool(rng.integers(2))
    values = arrays[name].astype(float, copy=True) if arrays[name].dtype.kind != "f" else arrays[name]
    if everywhere or not values.size:
        values[...] = poison
    else:
        values.flat[rng.integers(values.size)] = poison
    arrays[name] = values.astype(arrays[name].dtype)
    return f"{poison} {'everywhere' if everywhere else 'once'} in {name}"


def _remove_tensor(arrays: dict[str, np.ndarray], rng: Rng) -> str:
    name = _pick(arrays, rng)
    del arrays[name]
    return name


def _add_tensor(arrays: dict[str, np.ndarray], rng: Rng) -> str:
    name = _pick(arrays, rng)
    arrays[f"{name}x"] = arrays[name]
    return name


def _reshape(arrays: dict[str, np.ndarray], rng: Rng) -> str:
    name = _pick(arrays, rng)
    values = arrays[name]
    shapes = [values.T, values.reshape(-1), values[None], values[:0] if values.ndim else values, values[..., ::-1]]
    arrays[name] = np.ascontiguousarray(shapes[rng.integers(len(shapes))])
    return f"{name} {values.shape} → {arrays[name].shape}"


BYTES = (flip_bit, flip_header_bit, cut, splice)
TENSORS = tuple(
    _in_tensors(change)
    for change in (
        _swap_tensors,
        _swap_alike_tensors,
        _reinterpret,
        _poison,
        _remove_tensor,
        _add_tensor,
        _reshape,
    )
)


def _with_config(data: bytes, config: str) -> bytes:
    return save(load(data), metadata={"img2gene": config})


@dataclass
class Stored:
    """A stored model of one family, and what it predicts."""

    name: str
    folder: Path
    expected: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = studies.trained(self.name)
        self.path = ig.io.save_model(model, self.folder / f"{self.name}.img2gene")
        self.bytes = self.path.read_bytes()
        self.sdata = SpatialData(tables={"table": AnnData(np.zeros((1, 1), dtype=np.float32))})
        from img2gene.io.model_store import write_model

        write_model(self.sdata["table"], model, "img2gene")
        self.container = dict(self.sdata["table"].uns["img2gene"])
        self.expected = predictions(ig.io.load_model(self.path))

    def in_file(self, data: bytes) -> Callable[[], Model]:
        """Store these bytes as the file, and return the call that loads it."""
        self.path.write_bytes(data)
        return lambda: ig.io.load_model(self.path)

    def in_object(self, container: Any) -> Callable[[], Model]:
        """Store this container in the object, and return the call that loads it."""
        self.sdata["table"].uns["img2gene"] = container
        return lambda: ig.get.model(self.sdata)

    def judge(self, kind: str, detail: str, read: Callable[[], Model]) -> Outcome:
        """Load and predict; compare with the undamaged model."""
        stage = "refused"
        try:
            model = read()
            stage = "refused late"
            values = predictions(model)
        except Img2GeneError as error:
            return Outcome(kind, self.name, detail, stage, "" if stage == "refused" else describe(error))
        # Any other exception is what the trial looks for.
        except BaseException as error:  # noqa: BLE001
            return Outcome(kind, self.name, detail, "raw error", describe(error))
        differ = [name for name in self.expected if values.get(name) != self.expected[name]]
        return Outcome(kind, self.name, detail, "silent difference" if differ else "equal", ", ".join(differ[:4]))


def predictions(model: Model) -> dict[str, str]:
    """Describe all that a model says: predictions, intervals, and the facts that decide how it may be used."""
    features, sections, positions = studies.model_inputs()
    extra = {"positions": positions} if "positions" in model.extra_inputs else {}
    facts = {name: getattr(model, name) for name in ("name", "genes", "statistics", "inputs", "labels", "report")}
    values: dict[str, Any] = {"values": model.predict(features, sections, **extra)}
    if model.calibration is not None:
        values |= vars(model.predict_intervals(features, sections, **extra))
    return content(facts) | content(values)


def _damage_file(stored: Stored, rng: Rng) -> Outcome:
    changes = (*BYTES, *TENSORS)
    change = changes[rng.integers(len(changes))]
    data, detail = change(stored.bytes, rng)
    return stored.judge(f"file, {change.__name__}", detail, stored.in_file(data))


def _damage_file_json(stored: Stored, rng: Rng) -> Outcome:
    text = json.loads(stored.bytes[8 : header_length(stored.bytes)])["__metadata__"]["img2gene"]
    config, kind, detail = change_json(text, rng)
    return stored.judge(f"file, {kind}", detail, stored.in_file(_with_config(stored.bytes, config)))


def _damage_object(stored: Stored, rng: Rng) -> Outcome:
    container = {**stored.container, "model": dict(stored.container["model"])}
    changes = (*BYTES, *TENSORS)
    change = changes[rng.integers(len(changes))]
    data, detail = change(container["model"]["weights"].tobytes(), rng)
    container["model"]["weights"] = np.frombuffer(data, dtype=np.uint8).copy()
    return stored.judge(f"object, {change.__name__}", detail, stored.in_object(container))


def _damage_object_json(stored: Stored, rng: Rng) -> Outcome:
    container = {**stored.container, "model": dict(stored.container["model"])}
    config, kind, detail = change_json(container["model"]["config"], rng)
    container["model"]["config"] = config
    return stored.judge(f"object, {kind}", detail, stored.in_object(container))


_PIECES: tuple[Callable[[Any], Any], ...] = (
    lambda value: None,
    lambda value: {},
    lambda value: [],
    lambda value: "",
    lambda value: 5,
    lambda value: np.array([]),
    lambda value: np.zeros((2, 2)),
    lambda value: str(value)[: len(str(value)) // 2],
    lambda value: np.asarray(value, dtype=object),
)


def _damage_container(stored: Stored, rng: Rng) -> Outcome:
    container = {**stored.container, "model": dict(stored.container["model"])}
    part = container if rng.integers(2) else container["model"]
    key = sorted(part)[rng.integers(len(part))]
    number = int(rng.integers(len(_PIECES) + 1))
    if number == len(_PIECES):
        del part[key]
    else:
        part[key] = _PIECES[number](part[key])
    return stored.judge("object, container", f"{key}, change {number}", stored.in_object(container))


def _damage_signed(stored: Stored, rng: Rng) -> Outcome:
    """Change a model, and sign it anew: it may be another valid model, but never ends in a raw error."""
    config, arrays = studies.trained(stored.name).state()
    if rng.integers(2):
        text, kind, detail = change_json(json.dumps(config), rng)
        config = _parsed(text)
    else:
        change = TENSORS[rng.integers(len(TENSORS))]
        data, detail = change(save(arrays), rng)
        arrays, kind = load(data), change.__name__
    try:
        predictions(Model.from_state(_signed(config, arrays), arrays))
    except Img2GeneError:
        return Outcome(f"signed, {kind}", stored.name, detail, "refused")
    # Any other exception is what the trial looks for.
    except Exception as error:  # noqa: BLE001
        return Outcome(f"signed, {kind}", stored.name, detail, "raw error", describe(error))
    return Outcome(f"signed, {kind}", stored.name, detail, "succeeded")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    # The trials of files and objects cover text that is no JSON.
    except (ValueError, RecursionError):
        return {}


def _signed(config: Any, arrays: dict[str, np.ndarray]) -> Any:
    try:
        return {**config, "digest": digests(config, arrays)}
    # What cannot be signed is loaded without a right digest.
    except (TypeError, ValueError, AttributeError, RecursionError):
        return config


_DAMAGES = (
    _damage_file,
    _damage_file_json,
    _damage_object,
    _damage_object_json,
    _damage_container,
    _damage_signed,
)


def run(n: int, seed: int, names: list[str] | None = None) -> Iterator[Outcome]:
    """Damage models ``n`` times, the families in turn."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        stored = [Stored(name, Path(folder)) for name in names or functions.built_in_models()]
        for number in range(n):
            damage = _DAMAGES[rng.integers(len(_DAMAGES))]
            try:
                yield damage(stored[number % len(stored)], rng)
            # Some changes cannot be stored at all.
            except (SafetensorError, UnicodeEncodeError):
                continue
