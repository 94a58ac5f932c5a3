"""Fetch files of the Hugging Face hub and of plain addresses, and say what to do where that fails."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from img2gene._errors import Img2GeneError

logger = logging.getLogger(__name__)

HUB = "hf://"
_WEB = ("https://", "http://")
_ADDRESS = re.compile(r"hf://(?P<repository>[^/@]+/[^/@]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[^@]+))?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DIGEST = re.compile("[0-9a-f]{64}")
_FILE = "model.img2gene"
# Default branches of repositories; other branches cannot be told from tags by their names.
_BRANCHES = ("main", "master", "HEAD")


def is_remote(source: str) -> bool:
    """Whether a text is an address of the hub or of the web, and not a path; other addresses are refused."""
    if _lower_scheme(source).startswith((HUB, *_WEB)):
        return True
    if _SCHEME.match(source):
        raise Img2GeneError(
            f"{source!r} cannot be fetched: expected a path, '{HUB}owner/name@revision' or 'https://…'. Download the file, and "
            "pass its path."
        )
    return False


def fetched(source: str, sha256: str | None, folder: Path) -> Path:
    """Return the file at an address, from the cache if it was fetched before; the scheme may have any case.

    ``"hf://owner/name@revision"`` is the file ``model.img2gene`` of a repository of the hub,
    ``"hf://owner/name/file@revision"`` another one. A plain address needs a digest; its file is kept in ``folder``.
    """
    source = _lower_scheme(source)
    if sha256 is not None:
        sha256 = checked_digest(sha256)
    if not source.startswith(HUB):
        return _of_web(source, sha256, folder)
    path = _of_hub(source)
    if sha256 is None:
        return path
    if _digest(path) != sha256:
        # The copy in the cache of the hub's client can be damaged; it never looks at one again.
        path = _of_hub(source, again=True)
    check_digest(path, sha256, source)
    return path


def _lower_scheme(source: str) -> str:
    scheme = _SCHEME.match(source)
    return source if scheme is None else scheme[0].lower() + source[scheme.end() :]


def checked_digest(sha256: str) -> str:
    """Convert a digest to lower case; refuse what is none."""
    text = str(sha256).removeprefix("sha256:").lower()
    if not _DIGEST.fullmatch(text):
        raise Img2GeneError(f"sha256={sha256!r}: expected 64 hexadecimal digits, as `sha256sum` prints them.")
    return text


def check_digest(path: Path, sha256: str, source: str) -> None:
    """Refuse a file that does not have a digest."""
    digest = _digest(path)
    if digest != sha256:
        raise Img2GeneError(f"{source} is not the file that was asked for: its sha256 is {digest}, expected {sha256}.")


def _digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_hub(source: str, *, again: bool = False) -> Path:
    address = _ADDRESS.fullmatch(source)
    if address is None or address["revision"] is None:
        raise Img2GeneError(
            f"{source!r}: expected 'hf://owner/name@revision' for `{_FILE}` of a repository, or "
            "'hf://owner/name/file.img2gene@revision'; the revision is a commit or a tag."
        )
    if address["revision"] in _BRANCHES:
        raise Img2GeneError(
            f"{source!r} names a branch, and what it holds can change. Name a commit or a tag: they are listed on "
            f"https://huggingface.co/{address['repository']}/commits/{address['revision']}."
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise Img2GeneError(f'{source} needs huggingface-hub: `pip install "img2gene[zoo]"` ({error}).') from error
    try:
        name, revision = address["file"] or _FILE, address["revision"]
        return Path(hf_hub_download(address["repository"], name, revision=revision, force_download=again))
    except Exception as error:
        # The hub's client has many errors.
        page = f"https://huggingface.co/{address['repository']}"
        if is_refusal(error):
            raise Img2GeneError(f"{source} is gated: accept its terms on {page}, then run `hf auth login`.") from error
        raise Img2GeneError(f"{source} cannot be fetched: {error} Its files are listed on {page}.") from error


def _of_web(source: str, sha256: str | None, folder: Path) -> Path:
    """Download a file once; one with another digest is deleted and asked for once more."""
    if sha256 is None:
        raise Img2GeneError(
            f"{source} needs the digest of the file, `sha256=…`: what an address holds can change. The publisher states it, and "
            "`sha256sum` prints that of a file."
        )
    import pooch
    from requests import RequestException

    name = f"{sha256[:16]}-{source.rstrip('/').rpartition('/')[2].partition('?')[0] or _FILE}"
    store = pooch.create(
        path=folder,
        base_url="",
        registry={name: f"sha256:{sha256}"},
        urls={name: source},
        retry_if_failed=1,
    )
    with _quiet(pooch):
        try:
            return Path(store.fetch(name, progressbar=False))
        except ValueError as error:
            raise Img2GeneError(
                f"{source} does not hold the file with sha256 {sha256}: two downloads differed from it, and were deleted. Ask its "
                f"publisher for the digest of the present file ({error})."
            ) from error
        except (OSError, RequestException) as error:
            raise Img2GeneError(f"{source} cannot be downloaded ({error}).") from error


@contextmanager
def _quiet(pooch: object) -> Iterator[None]:
    """Keep the messages of the downloader for errors."""
    log = logging.getLogger("pooch") if not hasattr(pooch, "get_logger") else pooch.get_logger()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def is_refusal(error: BaseException | None) -> bool:
    """Whether the hub refused to give a file without a login; its client's errors are wrapped by other libraries."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if type(error).__name__ == "GatedRepoError" or status in (401, 403) or "gated repo" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
