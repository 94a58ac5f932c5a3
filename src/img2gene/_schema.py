"""The data contract: every key that the package reads or writes is defined here."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import shown
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

UNS = "img2gene"
FORMAT = "1"
LIBRARY_SIZE = "library_size"
# How records name expression without the noise of counting, as JSON has no infinity.
UNLIMITED = "unlimited"
PATCH_BBOX = "patch_bbox"
PATCH_TISSUE = "patch_tissue"
PATCH_INSIDE = "patch_inside"
PATCH_READABLE = "patch_readable"
PANEL = "panel"
PANELS = "panels"
FORMER_ENCODERS = "former_encoders"
FEATURES = "features"
FINGERPRINT = "fingerprint"
# Scored sections that the model was trained on.
TRAINED_ON = "trained_on"
# Row and column of each spot in µm where there are no patches; never stored.
POSITIONS = "img2gene_um"
PATHWAYS = "pathways"
SECTION = "section"
PATIENT = "patient"
PREDICTABLE = "predictable"
UNCERTAINTY = "uncertainty"
PREDICTED_BY = "predicted_by"
# Unit of predictions that a cross-validation kept.
SCALE = "scale"
PREDICTABILITY = "predictability"
# Attribute of images that were drawn of predictions.
RASTER = "img2gene_raster"
RASTERS = "rasters"
SCORED_BY = "scored_by"

# A window of this side takes .8 GB; no encoder sees anything in a larger field.
MAX_SIDE_PX = 16_384

_EACH = None
_REAL, _REAL_OR_NONE = (int, float), (int, float, type(None))
_PATCH_FORM = {
    "image": str,
    "mpp?": _REAL_OR_NONE,
    "spot_width?": _REAL,
    "side_px": [int],
    "size?": [int],
    "matrix?": [[_REAL]],
    "content?": str,
    "digest?": str,
    "embedded?": {_EACH: str},
}
# Entries of stored records that functions rely on. `_EACH` stands for entries of any name, `?` marks those that may be
# absent, and a list with one form is a list of such values.
_FORMS: dict[str, Any] = {
    "sections": {
        _EACH: {"mpp?": _REAL_OR_NONE, "spot_um?": _REAL_OR_NONE, "image?": str, "region?": str, "counted_genes?": int}
    },
    "patches": {"patch_um": [_REAL], "patch_px": int, "resolution_um?": _REAL, "regions": {_EACH: _PATCH_FORM}},
    "encoder": {_EACH: {"name": str, "width": int, "patch_um": [_REAL], "input_px": int, "orientations": int}},
    FEATURES: {_EACH: {"name": str, "width": int, "revision": str}},
    PANELS: {_EACH: {"sections": list, "by": str}},
    PATHWAYS: {"names": list, "gene_sets": {_EACH: list}, "method": str, "n_top": int},
    UNCERTAINTY: {_EACH: {"level": (int, float), "ood_threshold": (int, float)}},
    PREDICTED_BY: {_EACH: {"model": str, "fingerprint": str, "depth?": (int, float, str), "layer?": str}},
    RASTERS: {_EACH: {"um_per_px": _REAL, "section": str}},
    PREDICTABILITY: {"key": str, "fingerprint": str},
    SCORED_BY: {"key": str, "fingerprint": str},
    "localization": {_EACH: {"markers": {_EACH: list}, "thresholds": {}, "fingerprint?": str}},
}
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def embedding_key(encoder: str) -> str:
    """Return the ``obsm`` key of an encoder's embedding."""
    return f"X_{encoder}"


def matrix_key(identity: Mapping[str, Any]) -> str:
    """Return the ``obsm`` key of features by their identity: an embedding, or a matrix of the user."""
    return str(identity.get("matrix") or embedding_key(identity["name"]))


def tokens_key(encoder: str) -> str:
    """Return the ``obsm`` key of the tokens that belong to an encoder's embedding."""
    return f"{embedding_key(encoder)}_tokens"


def restained_key(encoder: str) -> str:
    """Return the ``obsm`` key of how an encoder's features change when patches are restained."""
    return f"{embedding_key(encoder)}_restained"


def uncertainty_keys(key: str) -> dict[str, str]:
    """Name the layers ``std``, ``lower`` and ``upper`` of a prediction stored as ``key``."""
    return {part: f"{key}_{part}" for part in ("std", "lower", "upper")}


def ood_key(key: str) -> str:
    """Return the ``obs`` key of the out-of-distribution percentiles of a prediction stored as ``key``."""
    return f"{key}_ood"


def micron_system(section: str) -> str:
    """Name the coordinate system of a section in microns, whose scale gives microns per pixel of its image."""
    return f"{section}_um"


def check_name(name: str, what: str) -> None:
    """Raise if spatialdata could not store an element or key called ``name``."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("__") or name in {".", ".."}:
        raise Img2GeneError(
            f"{what}={shown(name)} cannot be stored: spatialdata allows letters, digits, `_`, `.` and `-` only, "
            "and no leading `__`."
        )


def foreign_problems(names: list[str], way_out: str) -> list[str]:
    """List keys that a function would replace although no function of this package wrote them."""
    return [f"{listing(names)} would be replaced, and img2gene did not write it. {way_out}."] * bool(names)


def get_table(sdata: SpatialData, table_key: str = "table") -> AnnData:
    """Return the table ``table_key`` of a study; if it is missing, the error lists the tables."""
    tables = getattr(sdata, "tables", None)
    if tables is None:
        raise Img2GeneError(
            f"Expected a SpatialData, got {type(sdata).__name__}. "
            "Read one with `spatialdata_io` or `img2gene.io`, or build one with `img2gene.io.from_anndata`."
        )
    if not isinstance(table_key, str):
        raise Img2GeneError(
            f"table_key={shown(table_key)}: expected the name of a table (available: {listing(tables)})."
        )
    if table_key not in tables:
        raise MissingKeyError(missing(table_key, "sdata.tables", tables, "Pass `table_key=`."))
    return tables[table_key]


def read_json(table: AnnData, key: str, *, uns: str = UNS, default: Any = None) -> Any:
    """Read the configuration stored under ``uns[uns][key]`` as one JSON string; ``default`` if absent.

    Raises
    ------
    Img2GeneError
        ``uns[uns]`` is not of this package or of another format, or the text is damaged.
    """
    text = container(table, uns).get(key)
    if text is None:
        return default
    try:
        value = json.loads(str(text), parse_constant=_refuse_constant)
        problem = _form_problem(value, _FORMS.get(key, {}) if uns == UNS else {}, "it")
        if not problem and (uns, key) == (UNS, "patches"):
            problem = _patches_problem(value)
    except (ValueError, RecursionError) as error:
        problem = f"it is no JSON ({str(error)[:100]})"
    if problem:
        raise Img2GeneError(
            f"uns[{uns!r}][{key!r}] is damaged: {problem}. Remove this entry and run the function again that wrote it, or "
            "read the study anew."
        )
    return value


def _form_problem(value: Any, form: Any, where: str) -> str:
    """Say where a record has another form than what reads it expects; empty if nowhere."""
    if isinstance(form, list):
        if not isinstance(value, list) or not value:
            return f"{where} holds {shown(value)}, expected a list that is not empty"
        return next(filter(None, (_form_problem(item, form[0], where) for item in value)), "")
    if not isinstance(form, dict):
        fits = isinstance(value, form) and not (isinstance(value, bool) and form is not bool)
        expected = " or ".join(kind.__name__ for kind in (form if isinstance(form, tuple) else (form,)))
        return "" if fits else f"{where} holds {shown(value)}, expected {expected}"
    if not isinstance(value, dict):
        return f"{where} holds {shown(value)}, expected entries"
    absent = [name for name in form if name is not _EACH and not name.endswith("?") and name not in value]
    if absent:
        return f"{where} has no {listing(absent)}"
    forms = {None if name is _EACH else name.removesuffix("?"): part for name, part in form.items()}
    problems = (
        _form_problem(item, forms.get(name, forms.get(_EACH)), f"`{name}`")
        for name, item in value.items()
        if name in forms or _EACH in forms
    )
    return next(filter(None, problems), "")


def _patches_problem(record: dict[str, Any]) -> str:
    """Say which number in a record of patches cannot be the size of a window, an image or a map; empty if none."""
    if not 0 < record["patch_px"] <= MAX_SIDE_PX:
        return f"it has patch_px={shown(record['patch_px'])}"
    for region, entry in record["regions"].items():
        sides, size = entry["side_px"], entry.get("size", [1, 1])
        if min(sides) < 1 or max(sides) > MAX_SIDE_PX or len(size) != 2 or min(size) < 1:
            return f"windows of `{region}` have {shown(sides)} px in an image of {shown(size)} px"
        if entry.get("spot_width", 1) <= 0 or not _is_map(entry.get("matrix", [[1, 0, 0], [0, 1, 0]])):
            return f"`{region}` has spots without a width, or a `matrix` that maps to a line or a point"
        if "content" in entry and not {"size", "matrix"} <= entry.keys():
            return f"`{region}` has no `size` or no `matrix`"
    return ""


def _is_map(matrix: list[list[float]]) -> bool:
    """Check that a matrix (2, 3) maps different places to different places."""
    if [len(row) for row in matrix] != [3, 3]:
        return False
    determinant = np.linalg.det(np.array(matrix, dtype=float)[:, :2])
    return bool(np.isfinite(determinant) and determinant != 0)


def container(table: AnnData, uns: str = UNS) -> dict[str, Any]:
    """Return a copy of what the package stored under ``uns[uns]``, empty if nothing; refuse what it did not write."""
    stored = table.uns.get(uns)
    if stored is None and uns not in table.uns:
        return {}
    if not isinstance(stored, Mapping):
        raise Img2GeneError(
            f"uns[{uns!r}] holds {type(stored).__name__}, which img2gene did not write. Rename it, as img2gene keeps its "
            "results there."
        )
    if stored and str(stored.get("format")) != FORMAT:
        version = f"format {stored['format']!r}" if "format" in stored else "no format"
        raise Img2GeneError(
            f"uns[{uns!r}] has {version}; this version of img2gene reads format {FORMAT!r}. Use the version that wrote it, or "
            "rename the entry if it is not from img2gene."
        )
    return dict(stored)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def judges(table: AnnData, key: str) -> bool:
    """Check that ``var["predictable"]`` was computed for the prediction that is now stored as ``key``."""
    record = read_json(table, PREDICTABILITY, default={})
    model = read_json(table, PREDICTED_BY, default={}).get(key)
    # Predictions from outside the package have no model on record, so only the key can be compared.
    return bool(record) and record["key"] == key and (model is None or model["fingerprint"] == record["fingerprint"])


def apply(table: AnnData, update: dict[str, dict[str, Any]]) -> None:
    """Write all results of a function to the table, or none of them.

    Call it last and once, so that an earlier error leaves the object untouched. ``update`` maps ``obs``, ``obsm``,
    ``var``, ``layers`` and ``uns`` to the values that are set there. :func:`write_json` stores the values for ``uns``;
    elsewhere, None removes a key.
    """
    with all_or_nothing(table):
        for slot, items in update.items():
            for key, value in items.items():
                if slot == "uns":
                    write_json(table, key, value)
                elif value is None:
                    del getattr(table, slot)[key]
                else:
                    getattr(table, slot)[key] = value
    for slot, items in update.items():
        for key, value in items.items():
            if slot != "uns":
                logger.info("%s %s[%r]", "removed" if value is None else "wrote", slot, key)


@contextmanager
def all_or_nothing(*objects: AnnData | SpatialData) -> Iterator[None]:
    """Restore tables and studies after any interruption of the block, also Ctrl-C.

    What the block replaces or adds is undone: columns, keys, elements and attributes. An array that it changes in place stays changed.

    Examples
    --------
    >>> import anndata as ad
    >>> from img2gene import _schema
    >>> table = ad.AnnData(obs={"x": [1, 2]})
    >>> try:
    ...     with _schema.all_or_nothing(table):
    ...         table.obs["x"] = 3
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     table.obs["x"].tolist()
    [1, 2]
    """
    restores = [_restore_table(item) if hasattr(item, "obsm") else _restore_elements(item) for item in objects]
    try:
        yield
    except BaseException:
        for restore in restores:
            restore()
        raise


def _restore_table(table: AnnData) -> Callable[[], None]:
    """Return a function that puts the annotations of a table back to what they are now."""
    # Shallow copies share the arrays, so a snapshot costs no memory.
    frames = {slot: getattr(table, slot).copy(deep=False) for slot in ("obs", "var")}
    mappings = {slot: dict(getattr(table, slot)) for slot in ("obsm", "varm", "layers", "uns")}
    mappings["uns"] = {key: copy.copy(value) if isinstance(value, dict) else value for key, value in table.uns.items()}

    def restore() -> None:
        for slot, frame in frames.items():
            setattr(table, slot, frame)
        for slot, items in mappings.items():
            _restore_mapping(getattr(table, slot), items)

    return restore


def _restore_elements(sdata: SpatialData) -> Callable[[], None]:
    """Return a function that puts the elements of a study back to what they are now."""
    kinds = {kind: dict(getattr(sdata, kind)) for kind in ("images", "labels", "points", "shapes", "tables")}
    attrs = sdata.attrs

    def restore() -> None:
        sdata.attrs = attrs
        for kind, items in kinds.items():
            _restore_mapping(getattr(sdata, kind), items)

    return restore


def _restore_mapping(mapping: Any, items: dict[str, Any]) -> None:
    # anndata 0.13 lists X among the layers, under the name None.
    for key in [key for key in mapping if key is not None and (key not in items or mapping[key] is not items[key])]:
        del mapping[key]
    for key, value in items.items():
        if key not in mapping:
            mapping[key] = value


def write_json(table: AnnData, key: str, value: Any, *, uns: str = UNS) -> None:
    """Store ``value`` under ``uns[uns][key]`` as one JSON string."""
    # anndata silently corrupts lists of dicts in `uns` when it writes them.
    table.uns[uns] = container(table, uns) | {"format": FORMAT, key: to_json(value, key)}


def to_json(value: Any, name: str) -> str:
    """Write a value as JSON; numpy scalars and arrays are numbers and lists. Refuse what JSON cannot hold."""
    try:
        _check_keys(value)
        return json.dumps(value, allow_nan=False, default=_plain)
    except (ValueError, TypeError, RecursionError) as error:
        raise Img2GeneError(f"{name!r} cannot be stored as JSON: {str(error)[:200]}.") from error


def _check_keys(value: Any) -> None:
    """Refuse keys that JSON would turn into other ones."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    if isinstance(value, Mapping) and (keys := [key for key in value if not isinstance(key, str)]):
        raise TypeError(f"the key {keys[0]!r} is not a string")
    for item in items:
        _check_keys(item)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
