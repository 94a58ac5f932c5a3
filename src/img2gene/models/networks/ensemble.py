"""Several copies of a network that are trained and evaluated in one batched pass."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


class Ensemble(nn.Module):
    """``n_models`` networks that differ in their initial weights; parameters are stacked along the first axis.

    Member i starts from seed ``seed + i`` whatever the number of members. The networks' own attribute
    ``training`` follows the ensemble's.

    Parameters
    ----------
    build
        Makes one network; called once for each member.
    n_models
        Number of members.
    seed
        Seed of the first member.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.ensemble import Ensemble
    >>> ensemble = Ensemble(lambda: torch.nn.Linear(3, 2), n_models=4, seed=0)
    >>> ensemble(torch.zeros(5, 3)).shape
    torch.Size([4, 5, 2])
    """

    def __init__(self, build: Callable[[], nn.Module], n_models: int, seed: int) -> None:
        super().__init__()
        members = []
        for number in range(n_models):
            with torch.random.fork_rng(devices=[]):
                # `torch.manual_seed` would seed the generators of all devices, too.
                torch.default_generator.manual_seed(seed + number)
                members.append(build())
        self._assemble(n_models, copy.deepcopy(members[0]).to("meta"), *stack_module_state(members))

    def _assemble(
        self, n_models: int, template: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor]
    ) -> None:
        self.n_models = n_models
        for name, value in parameters.items():
            self.register_parameter(_flat(name), nn.Parameter(value.detach().clone()))
        for name, value in buffers.items():
            self.register_buffer(_flat(name), value.clone())
        # Not a submodule: its tensors are placeholders on no device.
        self._template = [template]
        self._lock = threading.RLock()

    @classmethod
    def restored(cls, template: nn.Module, arrays: dict[str, np.ndarray], n_models: int) -> Ensemble:
        """Restore an ensemble from the arrays of its state, without drawing weights first.

        Parameters
        ----------
        template
            A network on the meta device (:func:`outline`), which is copied.
        arrays
            (n_models, …) of each parameter and buffer, of its type.
        n_models
            Number of members.

        Raises
        ------
        RuntimeError
            Names or shapes of ``arrays`` do not belong to the network.
        """
        ensemble = cls.__new__(cls)
        nn.Module.__init__(ensemble)
        empty = [
            {name: value.new_empty((n_models, *value.shape)) for name, value in named}
            for named in (template.named_parameters(), template.named_buffers())
        ]
        ensemble._assemble(n_models, copy.deepcopy(template), *empty)
        # Stored arrays are read-only, which PyTorch warns about.
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        ensemble.load_state_dict(tensors, assign=True)
        return ensemble

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock: copies, also those in other processes, have their own."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()

    @contextmanager
    def placed(self, device: str | None) -> Iterator[None]:
        """Evaluate the ensemble on a device, one thread at a time, and take it back to the CPU.

        The pass of a network swaps the weights of the template, which two threads must not do at once. Nothing stays
        on the device between calls, where other models may need the memory.
        """
        with self._lock:
            try:
                self.to(device).eval()
                yield
            finally:
                self.cpu()

    @property
    def template(self) -> nn.Module:
        """The network without weights, in the ensemble's mode."""
        return self._template[0].train(self.training)

    def arrays(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Stacked parameters and buffers under the network's own names."""
        parameters: dict[str, Tensor] = {_nested(name): value for name, value in self.named_parameters()}
        return parameters, {_nested(name): value for name, value in self.named_buffers()}

    def call(self, function: Callable[..., Any], *inputs: Any, paired: tuple[Any, ...] = ()) -> Any:
        """``function(network, *inputs, *paired)`` of all members at once.

        Every member gets the same ``inputs``; ``paired`` are tensors with the members along their first axis.
        """
        template = self.template

        def one(state: tuple[dict[str, Tensor], dict[str, Tensor]], member_inputs: tuple[Any, ...]) -> Any:
            return functional_call(_Method(template, function), _prefixed(*state), (*inputs, *member_inputs))

        # Members must draw different dropout masks, or they would be less diverse.
        return vmap(one, randomness="different")(self.arrays(), paired)

    def call_member(self, number: int, function: Callable[..., Any], *inputs: Any) -> Any:
        """``function(network, *inputs)`` of one member."""
        parameters, buffers = ({name: value[number] for name, value in part.items()} for part in self.arrays())
        return functional_call(_Method(self.template, function), _prefixed(parameters, buffers), inputs)

    def forward(self, *inputs: Any) -> Any:
        """What the networks return, with the members along the first axis."""
        return self.call(lambda network, *values: network(*values), *inputs)


@functools.lru_cache(maxsize=16, typed=True)
def outline(network: Callable[[Any], nn.Module], architecture: Callable[..., Any], **entries: Any) -> nn.Module:
    """Build ``network(architecture(**entries))`` on the meta device: all shapes, and no memory for values.

    The result is shared between calls with the same entries, and must not be changed.

    Examples
    --------
    >>> from img2gene.models.cmrcnet.network import Architecture, CMRCNetNetwork
    >>> from img2gene.models.networks.ensemble import outline
    >>> outline(CMRCNetNetwork, Architecture, n_components=6, n_genes=5).encoder.linear.weight.shape
    torch.Size([256, 6])
    """
    # `typed`: 8.0 and True must not pass for 8 and 1, for which a network exists.
    with torch.device("meta"):
        return network(architecture(**entries))


def stacked_shapes(network: nn.Module, n_models: int) -> dict[str, tuple[int, ...]]:
    """List the shapes of the arrays that an ensemble of a network stores."""
    return {_flat(name): (n_models, *value.shape) for name, value in network.state_dict().items()}


class Single(nn.Module):
    """One network with what training asks of an ensemble, without the batched pass.

    For networks that come with their weights and are too large to be copied, or that write buffers in the forward pass.

    Parameters
    ----------
    network
        The network; trained in place.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.ensemble import Single
    >>> single = Single(torch.nn.Linear(3, 2))
    >>> single.call(lambda network, x: network(x), torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def call(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """``function(network, *inputs)``."""
        return function(self.network, *inputs)


def unit_members(embeddings: Tensor) -> np.ndarray:
    """Embeddings (n_models, B, dim) as rows (B, n_models · dim) of length 1, to which each member contributes the same.

    The cosine of two rows is the mean of the members' cosines.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.ensemble import unit_members
    >>> unit_members(torch.tensor([[[3.0, 4.0]], [[0.0, 5.0]]])).round(3)
    array([[0.424, 0.566, 0.   , 0.707]], dtype=float32)
    """
    unit = nn.functional.normalize(embeddings.float().cpu(), dim=-1)
    return (unit.movedim(0, 1).flatten(1) / len(unit) ** 0.5).numpy()


class _Method(nn.Module):
    """A function of a network as a module, which is what ``functional_call`` takes."""

    def __init__(self, network: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self.network, *inputs)


def _prefixed(*parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{name}": value for part in parts for name, value in part.items()}


def _flat(name: str) -> str:
    return name.replace(".", "/")


def _nested(name: str) -> str:
    return name.replace("/", ".")
