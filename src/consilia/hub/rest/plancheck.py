"""Is a plan fit to be shown to reviewers? Read as text only: nothing of it is imported or run.

The sites check its form again, for the node trusts no hub; here a researcher learns it at once.
"""

import ast

from consilia.errors import PlanError
from consilia.wire.planform import check_form
from consilia.wire.v1 import Plan


def check_plan(plan: Plan) -> None:
    """Raise PlanError, naming file and line, when sites could not load `plan`. Blocks."""
    check_form(plan)
    for path, text in plan.files.items():
        _check_syntax(path, text)


def _check_syntax(path: str, text: str) -> None:
    try:
        ast.parse(text, path)
    except SyntaxError as e:
        raise PlanError(f"{path} line {e.lineno}: {e.msg}") from None
    except (ValueError, RecursionError, MemoryError) as e:
        raise PlanError(f"{path} cannot be read as Python: {type(e).__name__}: {e}") from None
