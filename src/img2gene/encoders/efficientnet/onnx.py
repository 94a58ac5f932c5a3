"""EfficientNet-Lite0 in onnxruntime, whose depthwise convolutions are faster on CPUs than torch's."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.encoders.base import normalise_array, resize
from img2gene.encoders.efficientnet.network import ConvUnit, EfficientNetLite0, same_padding, token_width
from img2gene.encoders.tokens import cell_means

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

# The first opset in which ReduceMean takes its axes as an input; a later one would shut out older onnxruntimes.
_OPSET, _IR_VERSION = 18, 10


def runs_in_onnx(backend: str, device: str) -> bool:
    """Return whether ``backend`` means onnxruntime: ``"onnx"``, or ``"auto"`` on the CPU."""
    installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    if backend == "onnx" and not installed:
        raise Img2GeneError(
            'backend="onnx" needs onnx and onnxruntime, which are installed with img2gene and are gone: '
            "`pip install onnx onnxruntime`."
        )
    if backend == "auto" and device == "cpu" and not installed:
        logger.warning(
            "onnx and onnxruntime, which are installed with img2gene, are gone: torch embeds instead, in two to three times "
            "the time. Run `pip install onnx onnxruntime`"
        )
    if backend == "onnx" and device != "cpu":
        raise Img2GeneError(
            f'backend="onnx" runs on the CPU, not on {device!r}; pass `device="cpu"` or `backend="torch"`.'
        )
    return installed and device == "cpu" and backend in ("auto", "onnx")


class OnnxEncoder:
    """Computes features of EfficientNet-Lite0 in onnxruntime, with one session per input size.

    Parameters
    ----------
    network
        Network with folded normalisations.
    span
        First and last of the stages that are pooled, or None for the head.
    width
        Number of features.
    mean, std
        Normalisation of RGB values in 0–1.
    """

    def __init__(
        self,
        network: EfficientNetLite0,
        span: tuple[int, int] | None,
        width: int,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.network, self.span, self.width, self.mean, self.std = network, span, width, mean, std
        self._sessions: dict[tuple[int, int | None], Any] = {}

    def __call__(self, patches: np.ndarray, side: int | None = None) -> np.ndarray:
        """Compute features float32 (n, width) of uint8 (n, h, h, 3) patches, resized to ``side`` pixels first."""
        return self._run(patches, side, None)[0]

    def tokens(self, patches: np.ndarray, side: int | None, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute features and, in the same pass, tokens float32 (n, grid², token_width)."""
        features, tokens = self._run(patches, side, grid)
        return features, tokens

    def _run(self, patches: np.ndarray, side: int | None, grid: int | None) -> list[np.ndarray]:
        pixels = resize(patches, side or patches.shape[1])
        if not len(pixels):
            return [np.zeros(shape, dtype=np.float32) for shape in self._empty(grid)]
        # One image at a time keeps the feature maps in the processor's cache: 1.7 times as fast as batches of 32. The
        # features then cannot depend on the batch either.
        images = (normalise_array(image.numpy(), self.mean, self.std) for image in pixels.split(1))
        singles = [self.forward(image, grid) for image in images]
        return [np.concatenate(parts) for parts in zip(*singles, strict=True)]

    def _empty(self, grid: int | None) -> list[tuple[int, ...]]:
        return [(0, self.width)] + ([] if grid is None else [(0, grid**2, token_width(self.span))])

    def forward(self, images: np.ndarray, grid: int | None = None) -> list[np.ndarray]:
        """Compute features and, with a grid, tokens of normalised images (n, 3, side, side)."""
        key = images.shape[-1], grid
        if key not in self._sessions:
            self._sessions[key] = _session(_Graph(self.network, images.shape[-1]).build(self.span, grid))
        return self._sessions[key].run(None, {"images": images})


def _session(model: bytes) -> Any:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Waiting threads would otherwise keep their cores busy, which slows down everything on a shared machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Graph:
    """Writes the network as an ONNX graph for one input size, because the padding depends on the size."""

    def __init__(self, network: EfficientNetLite0, side: int) -> None:
        self.network, self.side = network, side
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._constant("low", np.array(0, dtype=np.float32))
        self._constant("high", np.array(6, dtype=np.float32))
        self._constant("axes", np.array([2, 3], dtype=np.int64))

    def build(self, span: tuple[int, int] | None, grid: int | None = None) -> bytes:
        from onnx import TensorProto, checker, helper

        maps = self._stages(len(self.network.stages) if span is None else span[1])
        if span is not None:
            maps = maps[span[0] :]
            moments = [self._moments(name) for name, _ in maps]
            pooled = [mean for mean, _ in moments] + [sd for _, sd in moments]
        else:
            maps = [self._unit(self.network.head, *maps[-1])]
            pooled = [self._add("ReduceMean", [maps[0][0], "axes"], keepdims=1)]
        joined = self._add("Concat", pooled, axis=1)
        self.nodes.append(helper.make_node("Flatten", [joined], ["features"], axis=1))
        inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, self.side, self.side])]
        outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", None])]
        if grid is not None:
            self._tokens(maps, grid)
            outputs.append(helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["n", grid**2, None]))
        graph = helper.make_graph(self.nodes, "efficientnet-lite0", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        checker.check_model(model)
        return model.SerializeToString()

    def _tokens(self, maps: list[tuple[str, int]], grid: int) -> None:
        """Average each map over the cells of a grid, by one matrix along its rows and one along its columns."""
        from onnx import helper

        pooled = []
        for name, size in maps:
            matrix = cell_means(size, grid)
            left = self._constant(f"left{len(self.weights)}", matrix)
            right = self._constant(f"right{len(self.weights)}", matrix.T)
            pooled.append(self._add("MatMul", [self._add("MatMul", [left, name]), right]))
        shape = self._constant("row", np.array([0, 0, -1], dtype=np.int64))
        rows = self._add("Reshape", [self._add("Concat", pooled, axis=1), shape])
        self.nodes.append(helper.make_node("Transpose", [rows], ["tokens"], perm=[0, 2, 1]))

    def _stages(self, last: int) -> list[tuple[str, int]]:
        name, size = self._unit(self.network.stem, "images", self.side)
        maps = [(name, size)]
        for stage in list(self.network.stages)[:last]:
            for block in stage:  # type: ignore[attr-defined]
                name, size = self._block(block, name, size)
            maps.append((name, size))
        return maps

    def _block(self, block: nn.Module, name: str, size: int) -> tuple[str, int]:
        y = name
        for unit in (block.expand, block.depthwise, block.project):
            if isinstance(unit, ConvUnit):
                y, size = self._unit(unit, y, size)
        return (self._add("Add", [name, y]) if block.shortcut else y), size

    def _unit(self, unit: ConvUnit, name: str, size: int) -> tuple[str, int]:
        conv = unit.conv
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        before, after = same_padding(size, kernel, stride)
        weight = self._constant(f"weight{len(self.weights)}", conv.weight.detach().numpy())
        bias = self._constant(f"bias{len(self.weights)}", conv.bias.detach().numpy())  # type: ignore[union-attr]
        y = self._add(
            "Conv", [name, weight, bias], group=conv.groups, strides=[stride] * 2, pads=[before, before, after, after]
        )
        return (y if unit.linear else self._add("Clip", [y, "low", "high"])), -(-size // stride)

    def _moments(self, name: str) -> tuple[str, str]:
        # In two passes: the mean of squares minus the squared mean would lose digits in float32.
        mean = self._add("ReduceMean", [name, "axes"], keepdims=1)
        centred = self._add("Sub", [name, mean])
        variance = self._add("ReduceMean", [self._add("Mul", [centred, centred]), "axes"], keepdims=1)
        return mean, self._add("Sqrt", [variance])

    def _add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name
