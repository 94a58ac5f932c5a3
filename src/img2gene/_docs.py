"""Descriptions of parameters that several functions share, written once and filled into their docstrings."""

from __future__ import annotations

import re
from typing import TypeVar

from img2gene._errors import MissingKeyError, missing

T = TypeVar("T")

# Each text is a whole entry of a "Parameters" section: the name, then its description indented by four spaces.
PARAMETERS = {
    "allow_leakage": """\
allow_leakage
    Score patients or sections that the model was trained on; the result is marked.""",
    "ax": """\
ax
    Axes to draw on; by default new ones.""",
    "client": """\
client
    Client of ``distributed`` whose workers share the work. None takes the current one, if a script has started
    one, and False works in this process. Results are the same.""",
    "encoder": """\
encoder
    Which embedding, if several are stored.""",
    "features": """\
features
    A matrix to train on in place of an embedding: its name in obsm, as ``"X_uni2"``, or a table with a row for each
    spot, as LazySlide's ``"uni2_tiles"``. It needs no patches, only microns per pixel that are recorded or found.""",
    "inplace_result": """\
inplace
    If False, only the result is returned and nothing is written.""",
    "inplace_update": """\
inplace
    If False, nothing is written and the update is returned.""",
    "key_model": """\
key
    Name of the model in this table.""",
    "key_prediction": """\
key
    Layer with the predictions.""",
    "key_study": """\
key
    Name of the prediction in the study.""",
    "min_depth": """\
min_depth
    Least median library size of a training section, as a share of that of the median training section. Sections
    below it are not trained on, and a warning names them: so shallow a section can make a model worse for the
    others. 0 keeps all.""",
    "model_any": """\
model
    A model, the path of one, or the key it is stored under; by default ``key``.""",
    "model_predicted": """\
model
    The model that predicted: itself, its file, or its key; by default the one stored under ``key``.""",
    "resolution_um": """\
resolution_um
    Microns per pixel at which the patches of all images are read. Finer images are averaged to it first, so that
    sections from different scanners look alike; coarser images keep their resolution, with a warning. None reads
    each image as finely as the encoder's input needs.""",
    "sdata_counts": """\
sdata
    Study with raw counts.""",
    "sdata_embedded": """\
sdata
    Study on which :func:`img2gene.pp.embed_patches` was run.""",
    "sdata_patches": """\
sdata
    Study on which :func:`img2gene.pp.extract_patches` was run.""",
    "sdata_predictions": """\
sdata
    Study with measured counts and predictions in ``layers[key]``.""",
    "sections_held_out": """\
sections
    Sections to score; by default those that the model was not trained on.""",
    "table_key_counts": """\
table_key
    Table with the counts.""",
    "table_key_embedding": """\
table_key
    Table with counts and embedding.""",
    "table_key_predictions": """\
table_key
    Table with counts and predictions.""",
    "table_key_trained": """\
table_key
    Table that the model was trained on.""",
}

_PLACEHOLDER = re.compile(r"^( *)%\((\w+)\)s$", flags=re.MULTILINE)


def fill_parameters(documented: T) -> T:
    """Replace each line ``%(name)s`` in a docstring by the text of :data:`PARAMETERS`, indented like the line.

    Parameters
    ----------
    documented
        Function or class. Without a docstring, as under ``python -OO``, it is left alone.

    Returns
    -------
    The same object.

    Raises
    ------
    MissingKeyError
        A placeholder has no text.

    Examples
    --------
    >>> from img2gene._docs import fill_parameters
    >>> def count(table_key):
    ...     '''Count spots.
    ...
    ...     Parameters
    ...     ----------
    ...     %(table_key_counts)s
    ...     '''
    >>> print(fill_parameters(count).__doc__.splitlines()[5])
            Table with the counts.
    """
    if documented.__doc__ is not None:
        documented.__doc__ = _PLACEHOLDER.sub(_indented_text, documented.__doc__)
    return documented


def _indented_text(placeholder: re.Match[str]) -> str:
    """Look up the text of a placeholder and indent each of its lines."""
    indent, name = placeholder.groups()
    if name not in PARAMETERS:
        raise MissingKeyError(missing(name, "img2gene._docs.PARAMETERS", PARAMETERS))
    return "\n".join(indent + line for line in PARAMETERS[name].splitlines())
