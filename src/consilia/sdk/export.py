"""A model's weights in the formats that other programs read.

    frame        the tensor frame as it travels, checksummed
    npz          numpy
    safetensors  https://github.com/huggingface/safetensors
    state_dict   torch.save of the tensors by name; read it with weights_only=True
    onnx         the whole model as a graph; tried out against torch before the file appears

Only `onnx` needs more than weights: the module they belong to and an example of its input.
Nothing here runs a training plan: the module is the caller's own.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from consilia.core.weights import BFLOAT16, Weights, widen
from consilia.errors import ConfigError, WireError

if TYPE_CHECKING:
    from torch import Tensor, nn

Format = Literal["frame", "npz", "safetensors", "state_dict", "onnx"]
TOLERANCE = 1e-5  # of an ONNX model's output, relative to the largest value of torch's
_BY_SUFFIX: Mapping[str, Format] = {
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".pt": "state_dict",
    ".pth": "state_dict",
    ".onnx": "onnx",
}


def format_of(path: Path) -> Format:
    """Return the format that a file's name asks for; a tensor frame for any other name."""
    return _BY_SUFFIX.get(path.suffix.lower(), "frame")


def write(frame: Path, weights: Weights, path: Path, format: Format, note: str) -> None:
    """Write `weights` (the content of `frame`) to `path`; it appears only when it is whole.

    `note` says where they come from, in formats that hold such a thing. Raises ConfigError
    for a library that is not installed.
    """
    if format == "onnx":
        raise ConfigError("an ONNX file needs the module and an example: use export(...)")
    writers: Mapping[str, Callable[[Path], object]] = {
        "frame": lambda part: shutil.copyfile(frame, part),
        "npz": lambda part: _npz(weights, part),
        "safetensors": lambda part: _safetensors(weights, part, note),
        "state_dict": lambda part: _state_dict(weights, part),
    }
    _whole(path, writers[format])


def write_onnx(
    module: "nn.Module",
    example: "Tensor | tuple[Tensor, ...]",
    path: Path,
    *,
    optimize: bool = True,
) -> float:
    """Write `module` as ONNX, run both on `example`, and return the largest difference.

    The first dimension of every input is the batch and may vary. The difference is relative
    to the largest absolute value of torch's output; above TOLERANCE it is a WireError and no
    file appears.
    """
    torch, runtime = _onnx_libraries()
    inputs = example if isinstance(example, tuple) else (example,)
    module = module.eval()
    with torch.no_grad():
        expected = module(*inputs)
    if not isinstance(expected, torch.Tensor):
        raise ConfigError(
            f"the module answers with {type(expected).__name__}; needed one tensor to compare"
        )
    found: list[float] = []

    def make(part: Path) -> None:
        batch = torch.export.Dim("batch", min=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's words to its own developers
            torch.onnx.export(
                module,
                inputs,
                str(part),
                dynamo=True,
                external_data=False,
                optimize=optimize,
                verbose=False,
                dynamic_shapes=[{0: batch} for _ in inputs],
            )
        session = runtime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        fed = {n: i.detach().numpy() for n, i in zip(names, inputs, strict=True)}
        found.append(_difference(session.run(None, fed)[0], expected.numpy()))
        if found[0] > TOLERANCE:
            raise WireError(
                f"the ONNX model's output differs from torch's by {found[0]:.2g} of its "
                f"largest value, at most {TOLERANCE:g} is accepted; nothing was written"
            )

    _whole(path, make)
    return found[0]


def _difference(got: "np.ndarray[Any, Any]", expected: "np.ndarray[Any, Any]") -> float:
    largest = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(got.astype(np.float64) - expected).max(initial=0.0)) / largest


def _whole(path: Path, make: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        make(part)
        part.replace(path)
    except OSError as e:
        raise ConfigError(f"{path} cannot be written: {e.strerror or e}") from None
    finally:
        part.unlink(missing_ok=True)


def _npz(weights: Weights, part: Path) -> None:
    with part.open("wb") as out:
        np.savez(out, **weights)  # type: ignore[arg-type]  # tensor names are keys


def _safetensors(weights: Weights, part: Path, note: str) -> None:
    try:
        from safetensors.numpy import save_file  # noqa: PLC0415
    except ImportError:
        raise _missing("safetensors", "export") from None
    plain = {
        name: np.ascontiguousarray(widen(array) if array.dtype == BFLOAT16 else array)
        for name, array in weights.items()
    }
    save_file(plain, part, metadata={"origin": note})


def _state_dict(weights: Weights, part: Path) -> None:
    try:
        import torch  # noqa: PLC0415  # heavy, and only here

        from consilia.plans.torch import tensor_of  # noqa: PLC0415
    except ImportError:
        raise _missing("torch", "torch") from None
    torch.save({name: tensor_of(array) for name, array in weights.items()}, part)


def _onnx_libraries() -> tuple[Any, Any]:
    try:
        import onnxruntime  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415  # torch's exporter needs it and says so late
        import torch  # noqa: PLC0415
    except ImportError as e:
        raise _missing(str(e.name), "export") from None
    return torch, onnxruntime


def _missing(module: str, extra: str) -> ConfigError:
    return ConfigError(f"this format needs {module}: pip install 'consilia[{extra}]'")
