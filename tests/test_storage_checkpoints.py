"""A checkpoint is resumed from only if it is whole and of this run; saved models hold no path."""

import logging

import numpy as np
import pytest
import torch

from img2gene.models import create
from img2gene.models.networks.checkpoints import LAST, sign, usable_checkpoint


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "identity.json").write_text("{}")
    path = tmp_path / "fit"
    path.mkdir()
    write(path)
    return path


def write(path, label="fit"):
    torch.save({"weights": torch.arange(200.0), "epoch": 3}, path / LAST)
    sign(path / LAST, path, label)


def test_a_signed_checkpoint_is_used_and_read_without_code(folder):
    assert usable_checkpoint(folder, "fit") == folder / LAST
    assert torch.load(folder / LAST, weights_only=True)["epoch"] == 3


@pytest.mark.parametrize(
    "content", [b"", b"x" * 99, b"PK\x05\x06" + bytes(18), None], ids=["empty", "text", "zip", "cut"]
)
def test_a_damaged_checkpoint_is_named_and_removed(folder, caplog, content):
    path = folder / LAST
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with caplog.at_level(logging.WARNING, logger="img2gene"):
        assert usable_checkpoint(folder, "fit") is None
    assert f"{path} cannot be used" in caplog.text
    assert "starts anew" in caplog.text
    assert not path.exists()


def test_no_flipped_bit_of_the_weights_is_accepted(folder):
    content = (folder / LAST).read_bytes()
    start = content.index(np.arange(200.0, dtype="f4").tobytes())
    for place in np.random.default_rng(0).integers(8 * 800, size=30):
        changed = bytearray(content)
        changed[start + place // 8] ^= 1 << int(place % 8)
        (folder / LAST).write_bytes(changed)
        assert usable_checkpoint(folder, "fit") is None


def test_a_checkpoint_of_another_stage_or_run_is_not_used(folder):
    assert usable_checkpoint(folder, "validation1") is None
    write(folder)
    (folder.parent / "identity.json").write_text('{"seed": 1}')
    assert usable_checkpoint(folder, "fit") is None
    write(folder)
    torch.save({"epoch": 1}, folder / LAST)
    assert usable_checkpoint(folder, "fit") is None
    assert usable_checkpoint(folder, "fit") is None


def test_saved_parameters_hold_no_path(tmp_path):
    parameters = create("cmrcnet", checkpoint_dir=tmp_path).parameters
    assert parameters.checkpoint_dir == tmp_path
    assert "checkpoint_dir" in parameters.names()
