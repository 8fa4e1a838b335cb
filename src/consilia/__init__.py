"""Consilia: hospitals learn together, patients' data stay at home.

    from consilia import Client, Experiment, Study

What a researcher needs is here; everything else is imported from its own module. Names are
loaded when they are first used, so that `import consilia` costs nothing at a node or hub.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilia.sdk.asynchronous import AsyncClient as AsyncClient
    from consilia.sdk.client import Client as Client
    from consilia.sdk.experiment import Experiment as Experiment
    from consilia.sdk.results import Model as Model
    from consilia.wire.v1 import Study as Study

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Experiment", "Model", "Study", "__version__"]

_HOME = {
    "AsyncClient": "consilia.sdk.asynchronous",
    "Client": "consilia.sdk.client",
    "Experiment": "consilia.sdk.experiment",
    "Model": "consilia.sdk.results",
    "Study": "consilia.wire.v1",
}


def __getattr__(name: str) -> Any:
    """Load an exported name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'consilia' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
