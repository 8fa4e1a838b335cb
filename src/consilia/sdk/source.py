"""A training plan as a researcher has it (a file, a folder, a module) into the wire's `Plan`.

Nothing is imported or run here: the source is read as text, so what is submitted is what the
sites' reviewers read. A plan in one file `heart.py` enters at `heart:PLAN`.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from consilia.core import ids
from consilia.errors import PlanError
from consilia.wire.v1 import MAX_PLAN, Plan

ATTRIBUTE = "PLAN"


def read_plan(
    source: str | Path | ModuleType,
    name: str = "",
    entry: str = "",
    requirements: Sequence[str] = (),
    description: str = "",
) -> Plan:
    """Return the plan at `source`: a .py file, a folder of .py files, or an imported module.

    `name` defaults to the file's; `entry` ("module:ATTRIBUTE") to its PLAN, and must be given
    for a folder of several files unless it has a plan.py. Raise PlanError for anything else.
    """
    path = _path(source)
    files = _folder(path) if path.is_dir() else {path.name: _text(path)}
    if (total := sum(len(text.encode()) for text in files.values())) > MAX_PLAN:
        raise PlanError(f"{path} has {total} bytes of source, a plan at most {MAX_PLAN}")
    module = _module(path, files, entry)
    if f"{module.replace('.', '/')}.py" not in files:
        raise PlanError(f"{path} has no module {module!r}; it has {', '.join(sorted(files))}")
    return Plan(
        name=ids.name(name or path.stem.lower(), "plan"),
        files=files,
        entry=entry or f"{module}:{ATTRIBUTE}",
        requirements=tuple(requirements),
        description=description,
    )


def _path(source: str | Path | ModuleType) -> Path:
    if isinstance(source, ModuleType):
        if not source.__file__:
            raise PlanError(
                f"module {source.__name__!r} has no file whose source could be read"
            )
        return Path(source.__file__)
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix == ".py"):
        return path
    problem = "is not a .py file or a folder" if path.exists() else "does not exist"
    raise PlanError(f"plan {str(source)!r} {problem}")


def _folder(path: Path) -> dict[str, str]:
    found = {
        str(file.relative_to(path)): _text(file)
        for file in sorted(path.rglob("*.py"))
        if not any(
            part.startswith((".", "__pycache__")) for part in file.relative_to(path).parts
        )
    }
    if not found:
        raise PlanError(f"folder {path} holds no .py file")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise PlanError(f"{path} cannot be read as UTF-8 text: {e}") from None


def _module(path: Path, files: dict[str, str], entry: str) -> str:
    if entry:
        module, colon, attribute = entry.partition(":")
        if not colon or not attribute.isidentifier():
            raise PlanError(f"entry {entry!r} is not module:ATTRIBUTE, such as heart:PLAN")
        return module
    if len(files) == 1:
        return next(iter(files)).removesuffix(".py").replace("/", ".")
    if "plan.py" in files:
        return "plan"
    raise PlanError(f"{path} holds {len(files)} files and no plan.py: say entry='module:PLAN'")
