"""Is a plan fit to be shown to reviewers? Read as text only: nothing of it is imported or run.

The sites check again, for the node trusts no hub; here a researcher learns it at once.
"""

import ast
import keyword
import re
from pathlib import PurePosixPath

from consilia.errors import PlanError
from consilia.wire.v1 import MAX_PLAN, Plan

MAX_FILES = 200
MAX_REQUIREMENTS = 64
MAX_DESCRIPTION = 10_000  # characters
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._, -]*\])?[ <>=!~.,*0-9A-Za-z]*"
)


def check_plan(plan: Plan) -> None:
    """Raise PlanError, naming file and line, when sites could not load `plan`. Blocks."""
    if not 0 < len(plan.name) <= 100 or not plan.name.isprintable():
        raise PlanError(f"plan name {plan.name[:80]!r} needs 1 to 100 printable characters")
    if len(plan.description) > MAX_DESCRIPTION:
        raise PlanError(f"the description has more than {MAX_DESCRIPTION} characters")
    _check_size(plan)
    modules = {_module(path): path for path in plan.files}
    module, colon, attribute = plan.entry.partition(":")
    if not colon or not attribute.isidentifier():
        raise PlanError(f"entry {plan.entry[:80]!r} is not module:NAME, such as plan:PLAN")
    if module not in modules:
        raise PlanError(
            f"entry {plan.entry[:80]!r} names no file of the plan; its modules are "
            f"{', '.join(sorted(modules))}"
        )
    for requirement in plan.requirements:
        if not _REQUIREMENT.fullmatch(requirement) or len(requirement) > 200:
            raise PlanError(
                f"requirement {requirement[:80]!r} is not of the form name>=version; "
                "URLs and markers are not admitted"
            )
    for path, text in plan.files.items():
        _check_syntax(path, text)


def _check_size(plan: Plan) -> None:
    if not 1 <= len(plan.files) <= MAX_FILES:
        raise PlanError(f"a plan has 1 to {MAX_FILES} files, found {len(plan.files)}")
    if len(plan.requirements) > MAX_REQUIREMENTS:
        raise PlanError(f"a plan declares at most {MAX_REQUIREMENTS} requirements")
    try:
        size = sum(len(p.encode()) + len(text.encode()) for p, text in plan.files.items())
    except UnicodeEncodeError as e:
        raise PlanError(f"the plan holds text that is not valid Unicode: {e.reason}") from None
    if size > MAX_PLAN:
        raise PlanError(f"the plan's files have {size} bytes, at most {MAX_PLAN} are admitted")


def _module(path: str) -> str:
    """Return the dotted name a file is imported by; raise PlanError when it has none."""
    pure = PurePosixPath(path)
    parts = pure.with_suffix("").parts if pure.name else ()
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    named = all(p.isascii() and p.isidentifier() and not keyword.iskeyword(p) for p in parts)
    if pure.suffix != ".py" or not parts or not named or str(pure) != path or len(path) > 200:
        raise PlanError(
            f"plan file {path[:80]!r} cannot be imported; needed a relative path such as "
            "plan.py or tools/losses.py, of Python names"
        )
    return ".".join(parts)


def _check_syntax(path: str, text: str) -> None:
    try:
        ast.parse(text, path)
    except SyntaxError as e:
        raise PlanError(f"{path} line {e.lineno}: {e.msg}") from None
    except (ValueError, RecursionError, MemoryError) as e:
        raise PlanError(f"{path} cannot be read as Python: {type(e).__name__}: {e}") from None
