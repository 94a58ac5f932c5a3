"""``Returns`` sections as prose: types stand in the signature, so the first line is not one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def parse_returns_section(self: NumpyDocstring, section: str) -> list[str]:
    """The whole section as the description of the result."""
    lines = self._dedent(self._consume_to_next_section())
    block = self._format_block(":returns: ", lines)
    return [*block, ""] if block and block[-1] else block


def setup(app: Sphinx) -> dict[str, Any]:
    NumpyDocstring._parse_returns_section = parse_returns_section
    return {"parallel_read_safe": True}
