"""A model in other programs' formats: each is read back by the program it is for."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from consilia.core.weights import BFLOAT16, Weights, narrow
from consilia.errors import ConfigError, WireError
from consilia.sdk import export
from consilia.sdk.results import Model
from consilia.sdk.source import read_plan
from consilia.wire import frames
from consilia.wire.people import ModelView, Strategy
from consilia.wire.v1 import plan_digest


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))


def model(folder: Path, weights: Weights) -> Model:
    path = folder / "frame"
    with path.open("wb") as out:
        header = frames.write(out.fileno(), weights)
    view = ModelView(
        "job.1",
        "job",
        1,
        header.digest,
        header.total_bytes,
        0.0,
        "heart",
        "sha256:0",
        {},
        Strategy(),
        ("a", "b"),
        100,
        {},
        None,
    )
    return Model(view, path)


def weights_of(module: nn.Module) -> Weights:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def test_every_format_gives_the_same_tensors(tmp_path: Path) -> None:
    trained = model(tmp_path, weights_of(network()))
    for name in ("a.npz", "a.safetensors", "a.pt", "a.frame"):
        assert trained.save(tmp_path / name) == tmp_path / name
    with np.load(tmp_path / "a.npz") as saved:
        numpy = dict(saved)
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        safe = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        assert file.metadata() == {"origin": f"job.1 {trained.view.digest}"}
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    for name, value in trained.weights.items():
        for found in (numpy[name], safe[name], state[name].numpy()):
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found, value)
    network().load_state_dict(state)
    assert frames.read(tmp_path / "a.frame").keys() == trained.weights.keys()


def test_bfloat16_becomes_float32_where_numpy_has_no_such_type(tmp_path: Path) -> None:
    exact = np.array([1.5, -0.25], np.float32)
    trained = model(tmp_path, {"w": narrow(exact)})
    assert trained.weights["w"].dtype == BFLOAT16
    trained.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("w"), exact)


def test_onnx_answers_what_torch_answers(tmp_path: Path) -> None:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 - slow

    module = network()
    trained = model(tmp_path, weights_of(module))
    other = nn.Sequential(nn.Linear(30, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    path = tmp_path / "a.onnx"
    trained.export(
        format="onnx", output_path=path, optimize=True, module=other, example=torch.randn(4, 30)
    )
    assert any(
        not torch.equal(a, b)
        for a, b in zip(other.parameters(), module.parameters(), strict=True)
    ), "the caller's module was changed"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(9, 30)  # another batch size
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


PLAN = """
import torch
from torch import nn
from consilia.plans.torch import torch_plan

def model(args):
    return nn.Sequential(nn.Linear(30, int(args["width"])), nn.ReLU(), nn.Linear(16, 1))

def train(model, data, args, context):
    return {}

PLAN = torch_plan(model, train, features="*", target="y", arguments={"width": 4})
"""


def test_the_network_is_made_by_the_researchers_own_plan(tmp_path: Path) -> None:
    """The arguments are those of the version; another plan, or none, makes nothing."""
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 - slow

    file = tmp_path / "heart.py"
    file.write_text(PLAN)
    module = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))
    found = model(tmp_path, weights_of(module))
    view = msgspec.structs.replace(
        found.view, plan=plan_digest(read_plan(file)), arguments={"width": 16}
    )
    known = Model(view, tmp_path / "frame", file)
    known.export(tmp_path / "known.onnx", "onnx")
    Model(view, tmp_path / "frame").export(tmp_path / "named.onnx", "onnx", plan=file)
    x = torch.randn(5, 30)
    with torch.no_grad():
        expected = module(x).numpy()
    for name in ("known.onnx", "named.onnx"):
        session = onnxruntime.InferenceSession(
            str(tmp_path / name), providers=["CPUExecutionProvider"]
        )
        (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    file.write_text("raise SystemExit('never run')\n" + PLAN)
    with pytest.raises(ConfigError, match=rf"needed the one that job\.1 .* {view.plan}"):
        known.export(tmp_path / "other.onnx", "onnx")
    file.write_text(PLAN.replace('features="*"', 'features=["a", "b"]'))
    chosen = msgspec.structs.replace(view, plan=plan_digest(read_plan(file)))
    with pytest.raises(ConfigError, match="does not take 2 columns"):
        Model(chosen, tmp_path / "frame", file).network().example()
    assert not (tmp_path / "other.onnx").exists()


class Random(nn.Module):
    """Answers differently every time: no file can be right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def test_an_onnx_file_that_differs_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="differs from torch's"):
        export.write_onnx(Random(), torch.zeros(2, 3), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    trained = model(tmp_path, weights_of(network()))
    with pytest.raises(ConfigError, match=r"needed plan=, the file of .* or module="):
        trained.save(tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match="cannot be written"):
        trained.save(tmp_path / "nowhere" / "a.npz")
    wrong: Any = nn.Linear(3, 1)
    with pytest.raises(RuntimeError, match="state_dict"):
        trained.export(tmp_path / "a.onnx", "onnx", module=wrong, example=torch.zeros(1, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["frame"]
