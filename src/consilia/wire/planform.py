"""The form of a training plan: one rule for the hub that takes it in and the node that runs it.

Nothing of the plan is imported, run or even parsed here. The hub checks so that a researcher
learns of a mistake at once; the node checks again, since it trusts no hub.
"""

import keyword
import re
from pathlib import PurePosixPath

from consilia.errors import PlanError
from consilia.wire.v1 import MAX_PLAN, Plan

MAX_NAME = 100  # characters
MAX_FILES = 200
MAX_PATH = 200  # characters
MAX_REQUIREMENTS = 64
MAX_DESCRIPTION = 10_000  # characters
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._, -]*\])?[ <>=!~.,*0-9A-Za-z]*"
)


def check_form(plan: Plan) -> None:
    """Raise PlanError when a plan's names, paths, sizes or requirements cannot be."""
    if not 0 < len(plan.name) <= MAX_NAME or not plan.name.isprintable():
        raise PlanError(
            f"plan name {plan.name[:80]!r} needs 1 to {MAX_NAME} printable characters"
        )
    if len(plan.description) > MAX_DESCRIPTION:
        raise PlanError(f"the description has more than {MAX_DESCRIPTION} characters")
    _check_size(plan)
    modules = {module_of(path) for path in plan.files}
    module, colon, attribute = plan.entry.partition(":")
    if not colon or not _is_name(attribute):
        raise PlanError(f"entry {plan.entry[:80]!r} is not module:NAME, such as plan:PLAN")
    if module not in modules:
        raise PlanError(
            f"entry {plan.entry[:80]!r} names no file of the plan; its modules are "
            f"{', '.join(sorted(modules))}"
        )
    for requirement in plan.requirements:
        if not _REQUIREMENT.fullmatch(requirement) or len(requirement) > MAX_PATH:
            raise PlanError(
                f"requirement {requirement[:80]!r} is not of the form name>=version; "
                "URLs and markers are not admitted"
            )


def module_of(path: str) -> str:
    """Return the dotted name a file is imported by; raise PlanError when it has none."""
    pure = PurePosixPath(path)
    parts = pure.with_suffix("").parts if pure.name else ()
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    named = bool(parts) and all(map(_is_name, parts))
    if pure.suffix != ".py" or not named or str(pure) != path or len(path) > MAX_PATH:
        raise PlanError(
            f"plan file {path[:80]!r} cannot be imported; needed a relative path such as "
            "plan.py or tools/losses.py, of Python names"
        )
    return ".".join(parts)


def entry_file(plan: Plan) -> str | None:
    """Return the file that holds the entry point, or None when the plan lacks it."""
    base = plan.entry.partition(":")[0].replace(".", "/")
    return next((f for f in (f"{base}.py", f"{base}/__init__.py") if f in plan.files), None)


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


def _is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)
