"""Checkpoints into modules: strictly, and without a copy on the host where they are used there.

Owns what a checkpoint must hold and how its faults are told. Knows modules only by their keys and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.config import LMConfig, MimiConfig
from model.lm import LM
from model.mimi.codec import Mimi
from model.staging import StagingError, read_tensors

_M = TypeVar("_M", bound=nn.Module)
_NAMED = 8
"""Tensors an error names of each kind; the rest are counted."""

MIMI_ALIASES = {
    "._codebook.inited": "._codebook._initialized",
    "._codebook.cluster_size": "._codebook.cluster_usage",
    "._codebook.embed_avg": "._codebook.embedding_sum",
    "._codebook.embed_sum": "._codebook.embedding_sum",
}
"""Endings of codebook names in older codec checkpoints, and what they are called now."""


class WeightsError(Exception):
    """A checkpoint is not what the model needs; the message names the file and the tensors."""


class _WithoutChance(TorchFunctionMode):
    """Lets modules leave out their first random numbers, which nobody sees where there is no memory.

    There torch makes them by decompositions, for which it imports its compiler: over a second of a start.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def on_meta(make: Callable[[], _M]) -> _M:
    """A module with shapes and no memory."""
    with torch.device("meta"), _WithoutChance():
        return make()


def load_lm(
    path: Path, config: LMConfig, *, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
) -> LM:
    """The language model from a safetensors file, ready for inference. Raises WeightsError."""
    return load(on_meta(lambda: LM(config)), path, dtype=dtype, device=device)


def load_mimi(
    path: Path, config: MimiConfig, *, device: torch.device | str = "cpu", decoder_tf32: bool = False
) -> Mimi:
    """The codec from a safetensors file, in float32, ready for inference. Raises WeightsError."""
    mimi = on_meta(lambda: Mimi(config, decoder_tf32=decoder_tf32))
    return load(mimi, path, dtype=torch.float32, device=device, aliases=MIMI_ALIASES)


def load(
    module: _M,
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    aliases: Mapping[str, str] | None = None,
) -> _M:
    """Give `module`, made on the meta device, the tensors of a safetensors file, and return it.

    Every tensor must be there, none may be left over and all must have the module's shape. Floating ones are cast
    to `dtype`; on a CPU, where that is the file's own, memory stays mapped to the file. `aliases` maps endings of older
    names to present ones. Raises WeightsError.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    device = torch.device(device)
    try:
        with safe_open(path, framework="pt") as file:
            names = _renamed(path, list(file.keys()), aliases or {})
            found = {new: tuple(file.get_slice(old).get_shape()) for new, old in names.items()}
            _check(path, expected, found)
            mapped = device.type == "cpu"
            stored = {old: file.get_tensor(old) for old in names.values()} if mapped else read_tensors(path, device)
            tensors = {new: _cast(stored[old], dtype) for new, old in names.items()}
    except (SafetensorError, StagingError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _renamed(path: Path, names: list[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Present name of each tensor to its name in the file."""
    result: dict[str, str] = {}
    for old in names:
        new = next((old.removesuffix(end) + now for end, now in aliases.items() if old.endswith(end)), old)
        if new in result:
            raise WeightsError(f"{path}: {old} and {result[new]} are two names of one tensor")
        result[new] = old
    return result


def _check(path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    shared = expected.keys() & found.keys()
    misshapen = [
        f"{n} {list(found[n])} instead of {list(expected[n])}" for n in sorted(shared) if found[n] != expected[n]
    ]
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "not part of the model": sorted(found.keys() - expected.keys()),
        "of another shape": misshapen,
    }
    told = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in faults.items() if names)
    if told:
        raise WeightsError(f"{path} does not fit the model: {told}")


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
