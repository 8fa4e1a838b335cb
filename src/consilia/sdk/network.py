"""The network that a model's weights belong to, made anew from the training plan's own code.

An ONNX file and a deployment need more than weights: the module, which the plan's code makes.
Code runs on this machine only if it is the caller's own, named by them: the file, folder or
module of a plan, and only if its digest is that of the plan which the model was trained with.
What a hub keeps is never run. Whoever has only that can read it (`consilia plan show DIGEST`),
save it, and name the file.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from consilia.errors import ConfigError
from consilia.plans.contract import check_arguments
from consilia.plans.load import load_plan
from consilia.sdk.source import read_plan
from consilia.wire.people import ModelView
from consilia.wire.v1 import Plan, plan_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

Source = str | Path | ModuleType | Plan
ROWS = 8  # of the records that are made up to try a network out


@dataclass(frozen=True, slots=True)
class Network:
    """A plan's module with the arguments of one model; its weights are any."""

    module: "nn.Module"
    features: tuple[str, ...]  # the columns that it is given; () where they are all

    def example(self) -> "Tensor":
        """Return made-up records that the module takes; ConfigError where none can be guessed.

        As many columns as the plan names or, where it takes all, as the first layer says.
        """
        import torch  # noqa: PLC0415 - heavy, and only here

        width = len(self.features) or _width(self.module)
        made = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                self.module.eval()(made[:2])
        except Exception as error:  # the module is the caller's code: it may raise anything
            why = f"it does not take {width} columns of numbers ({error})"
            raise _no_example(why) from None
        return made


def network_of(view: ModelView, source: Source) -> Network:
    """Run the caller's own plan and return the network of a model version.

    Raises ConfigError for another plan than the model's, and for one that makes no module.
    """
    mine = source if isinstance(source, Plan) else read_plan(source)
    if (found := plan_digest(mine)) != view.plan:
        raise ConfigError(
            f"plan: found {found}, needed the one that {view.id} was trained with, {view.plan} "
            f"(`consilia plan show {view.plan}` shows its source); one that was submitted with "
            "requirements or an entry is consilia.sdk.source.read_plan(file, ...) with them"
        )
    plan = load_plan(mine)
    if plan.network is None:
        raise ConfigError(
            f"plan: a {plan.framework} plan has no network of its own; needed one made with "
            "torch_plan, or module="
        )
    features = plan.selection.features if plan.selection else None
    module = plan.network(check_arguments(plan.arguments, view.arguments))
    return Network(module, tuple(features or ()))


def _width(module: "nn.Module") -> int:
    """Return how many columns the first layer that says so takes."""
    for layer in module.modules():
        for name in ("in_features", "num_features"):
            width = getattr(layer, name, None)
            if isinstance(width, int) and width > 0:
                return width
    raise _no_example("no layer says how many columns it takes")


def _no_example(why: str) -> ConfigError:
    return ConfigError(
        f"example: none was given, and none can be made up for this network: {why}; needed "
        "example=, an input with the batch in its first dimension"
    )


def needed(view: ModelView) -> ConfigError:
    """Return the error where nothing says which network the weights belong to."""
    return ConfigError(
        f"plan: found none, and weights alone are no network; needed plan=, the file of the "
        f"training plan {view.plan} on this machine (its code then runs here), or module="
    )
