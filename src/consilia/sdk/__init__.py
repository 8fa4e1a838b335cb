"""The researcher's side: a typed client of the hub's REST API, studies and experiments.

from consilia.sdk import Client, Experiment
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilia.sdk.client import Client
    from consilia.sdk.experiment import Experiment

__all__ = ["Client", "Experiment"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: the command line must start without numpy."""
    if name == "Client":
        from consilia.sdk.client import Client  # noqa: PLC0415

        return Client
    if name == "Experiment":
        from consilia.sdk.experiment import Experiment  # noqa: PLC0415

        return Experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
