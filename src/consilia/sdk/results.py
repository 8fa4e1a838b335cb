"""What a run leaves behind, the same for a job at a hub and for one in `consilia.sim`.

A round's metrics are the record-weighted means over the sites whose updates are in it. pandas
and torch are imported only by the properties that return their objects.
"""

import copy
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilia.core.weights import Weights
from consilia.errors import ConfigError, NotFound
from consilia.sdk.export import Format, format_of, write, write_onnx
from consilia.sdk.network import Network, Source, needed, network_of
from consilia.sdk.notebook import model_html
from consilia.wire import frames
from consilia.wire.people import ModelView, RoundView

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn


class Model:
    """A model version: its weights and where they come from."""

    def __init__(self, view: ModelView, frame: Path, plan: Source | None = None) -> None:
        """`frame` is the tensor frame on this machine; it must stay while the model is used.

        `plan` is the caller's own training plan, where it is known.
        """
        self.view = view
        self._frame = frame
        self._plan = plan

    def __repr__(self) -> str:
        """Name the version, not its content."""
        return f"<Model {self.view.id}: {self.view.bytes} bytes, {self.view.records} records>"

    def _repr_html_(self) -> str:
        """Show lineage and metrics in a notebook."""
        return model_html(self.view)

    @cached_property
    def weights(self) -> Weights:
        """The tensors as numpy arrays by name (bfloat16: see core.weights.widen)."""
        return frames.read(self._frame)

    def save(self, path: str | Path) -> Path:
        """Write the weights to `path`, in the format of its name (sdk.export.format_of)."""
        path = Path(path)
        return self.export(path, format_of(path))

    def export(  # noqa: PLR0913 - by keyword
        self,
        output_path: str | Path,
        format: Format,
        *,
        plan: Source | None = None,
        module: "nn.Module | None" = None,
        example: "Tensor | tuple[Tensor, ...] | None" = None,
        optimize: bool = True,
    ) -> Path:
        """Write the model to `output_path` as frame, npz, safetensors, state_dict or onnx.

        For onnx the network is made by the training plan: `plan` is your own file of it (not
        needed where the experiment was made with it), whose code then runs here. Or `module`
        is what the plan's `model(args)` makes: the weights are loaded into a copy of it.
        `example` is an input, the batch in its first dimension; without one, records are made
        up. The file appears only when onnxruntime gives what torch gives.
        """
        path = Path(output_path)
        if format != "onnx":
            write(self._frame, self.weights, path, format, f"{self.view.id} {self.view.digest}")
            return path
        made = Network(module, ()) if module is not None else self.network(plan)
        given = made.example() if example is None else example
        filled = copy.deepcopy(made.module)
        filled.load_state_dict(self.state_dict())
        write_onnx(filled, given, path, optimize=optimize)
        return path

    def network(self, plan: Source | None = None) -> Network:
        """Return the network that the weights belong to, made by your own training plan.

        `plan` is its file, folder or module; its code runs here. ConfigError where none is
        known, and for another plan than the model's.
        """
        own = plan if plan is not None else self._plan
        if own is None:
            raise needed(self.view)
        return network_of(self.view, own)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights as torch tensors, for `module.load_state_dict`.

        A module with buffers that do not travel (persistent=False) loads it strictly, too.
        """
        try:
            from consilia.plans.torch import tensor_of  # noqa: PLC0415  # imports torch
        except ImportError:
            raise missing("torch", "a state_dict", "torch") from None

        return {name: tensor_of(array) for name, array in self.weights.items()}


class Results(ABC):
    """Rounds, history and models of a run."""

    @property
    @abstractmethod
    def rounds(self) -> Sequence[RoundView]:
        """The closed rounds, oldest first, as records."""

    @abstractmethod
    def get_model(self, round: int | None = None) -> Model:
        """Return the model version after `round`, the newest by default."""

    @property
    def history(self) -> "pd.DataFrame":
        """The closed rounds as a DataFrame indexed by round, a column for each metric.

        `alarms` is there when there were some: what looked wrong, "" in all other rounds.
        """
        try:
            import pandas as pd  # noqa: PLC0415  # heavy, and only here
        except ImportError:
            raise missing("pandas", "history as a DataFrame", "notebook") from None

        watched = any(r.alarms for r in self.rounds)
        rows = [
            {
                "round": r.round,
                "sites": len(r.sites),
                "records": r.records,
                "seconds": r.seconds,
                "bytes_in": r.bytes_in,
                "bytes_out": r.bytes_out,
                **({"bytes_saved": r.bytes_saved} if r.bytes_saved else {}),
                **({} if r.epsilon is None else {"epsilon": r.epsilon}),
                **r.metrics,
                **({"alarms": "; ".join(r.alarms)} if watched else {}),
            }
            for r in self.rounds
        ]
        columns = ["round", "sites", "records", "seconds", "bytes_in", "bytes_out"]
        return pd.DataFrame(rows, columns=None if rows else columns).set_index("round")


def scratch(owner: object, prefix: str) -> Path:
    """Return a new folder that is removed when `owner` is garbage, or the program ends."""
    folder = tempfile.mkdtemp(prefix=prefix)
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def version_of(rounds: Sequence[RoundView], round: int | None, job: str) -> str:
    """Return the id of the model version after `round` (the newest for None)."""
    by_round = {r.round: r.model for r in rounds}
    if not by_round:
        raise NotFound(f"job {job} has closed no round yet, so it has no model")
    if round is None:
        return by_round[max(by_round)]
    if round not in by_round:
        raise NotFound(f"job {job} has no model of round {round}; it has {sorted(by_round)}")
    return by_round[round]


def missing(module: str, what: str, extra: str) -> ConfigError:
    """Return the error for a library that is not installed, with the remedy."""
    return ConfigError(f"{what} needs {module}: pip install 'consilia[{extra}]'")
