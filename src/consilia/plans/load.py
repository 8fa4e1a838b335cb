"""Turn the reviewed source of a plan into a TrainingPlan.

The modules of a plan live in a package of their own, made for this one load, so two plans
(or two loads of one plan) in one process never see each other. Inside it the files import
each other as if they lay in one folder (`import helper`) or relatively (`from . import
helper`). Nothing is written to disk; tracebacks show the plan's lines all the same.

Only a worker, a simulator and a researcher's own program, of the researcher's own file
(sdk.network), may call `load_plan`: it runs the researcher's code.
"""

import builtins
import importlib
import keyword
import linecache
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import PurePosixPath
from types import CodeType, ModuleType

from consilia.errors import PlanError
from consilia.plans.contract import TrainingPlan
from consilia.wire.v1 import MAX_PLAN, Plan

_TAKEN = frozenset({"consilia", "numpy", "torch", "sklearn", "scipy", "duckdb"})


def load_plan(plan: Plan) -> TrainingPlan:
    """Import the plan's entry module and return the TrainingPlan that its entry names.

    Raises PlanError, with file and line where there is one; its `__cause__` is what the
    plan's own code raised, so a ModuleNotFoundError there means a missing requirement.
    """
    return _load(plan)[0]


@contextmanager
def fresh_plan(plan: Plan) -> Iterator[TrainingPlan]:
    """Load a plan anew for the time of a block; what it kept of its data goes with it."""
    found, finder = _load(plan)
    try:
        yield found
    finally:
        finder.forget()


def _load(plan: Plan) -> "tuple[TrainingPlan, _PlanModules]":
    module_name, attribute = _entry(plan)
    files = {_module(path, plan.name): (path, source) for path, source in plan.files.items()}
    if sum(len(s.encode()) for s in plan.files.values()) > MAX_PLAN:
        raise PlanError(f"plan {plan.name!r} is larger than {MAX_PLAN} bytes")
    if module_name not in files:
        raise PlanError(
            f"plan {plan.name!r}: entry {plan.entry!r} names no file of the plan; "
            f"its modules are {', '.join(sorted(files)) or 'none'}"
        )
    finder = _PlanModules(plan.name, files)
    sys.meta_path.insert(0, finder)
    try:
        module = importlib.import_module(f"{finder.package}.{module_name}")
    except Exception as error:
        finder.forget()
        raise PlanError(_describe(error, plan)) from error
    found = getattr(module, attribute, None)
    if not isinstance(found, TrainingPlan):
        finder.forget()
        what = "is not there" if found is None else f"is of type {type(found).__name__}"
        raise PlanError(
            f"plan {plan.name!r}: entry {plan.entry!r} {what}; needed a plan made with "
            "torch_plan, sklearn_plan or numpy_plan"
        )
    return found, finder


class _PlanModules(MetaPathFinder, InspectLoader):
    """Finds and loads the modules of one plan, from memory, under one private package."""

    def __init__(self, plan: str, files: Mapping[str, tuple[str, str]]) -> None:
        self.package = f"consilia_plan_{id(self):x}"
        self._plan = plan
        self._files = {f"{self.package}.{name}": file for name, file in files.items()}
        self._tops = {name.partition(".")[0] for name in files}
        # folders without an __init__.py are packages too
        self._folders = {self.package} | {
            f"{self.package}.{'.'.join(parts[:i])}"
            for parts in (name.split(".") for name in files)
            for i in range(1, len(parts))
        }
        self._builtins = dict(vars(builtins)) | {"__import__": self._import}

    def forget(self) -> None:
        """Take the finder and its modules out of the interpreter again."""
        sys.meta_path.remove(self)
        for name in [n for n in sys.modules if f"{n}.".startswith(f"{self.package}.")]:
            del sys.modules[name]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of one of the plan's modules, else None."""
        if fullname not in self._files and fullname not in self._folders:
            return None
        spec = ModuleSpec(fullname, self, is_package=self.is_package(fullname))
        if fullname in self._files:
            spec.origin = self._origin(fullname)
            spec.has_location = True
        return spec

    def is_package(self, fullname: str) -> bool:
        """Say whether the module holds others."""
        path = self._files.get(fullname, ("__init__.py", ""))[0]
        return fullname in self._folders or PurePosixPath(path).name == "__init__.py"

    def get_source(self, fullname: str) -> str:
        """Return the source text (for tracebacks and inspect)."""
        return self._files.get(fullname, ("", ""))[1]

    def get_code(self, fullname: str) -> CodeType:
        """Compile the module."""
        return compile(self.get_source(fullname), self._origin(fullname), "exec")

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with an import statement that finds the plan's own files first."""
        name = module.__name__
        origin = self._origin(name)
        source = self.get_source(name)
        linecache.cache[origin] = (len(source), None, source.splitlines(True), origin)
        module.__dict__["__builtins__"] = self._builtins
        exec(self.get_code(name), module.__dict__)  # noqa: S102  the worker's very purpose

    def _origin(self, fullname: str) -> str:
        return f"{self._plan}/{self._files.get(fullname, ('__init__.py', ''))[0]}"

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002  names of builtins.__import__
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or top not in self._tops:
            return builtins.__import__(name, globals, locals, fromlist, level)
        inner = f"{self.package}.{name}"
        leaf = builtins.__import__(inner, globals, locals, fromlist or ("__name__",), 0)
        return leaf if fromlist else sys.modules[f"{self.package}.{top}"]


def location(error: BaseException, plan: Plan) -> str:
    """Say where in the plan's files `error` arose ("plan.py, line 3"), or ""."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename.removeprefix(plan.name + '/')}, line {error.lineno}"
    origins = {f"{plan.name}/{path}": path for path in plan.files}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in origins:
            return f"{origins[frame.filename]}, line {frame.lineno}"
    return ""


def _describe(error: Exception, plan: Plan) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    where = location(error, plan)
    return (
        f"plan {plan.name!r} does not load: {where}{': ' if where else ''}"
        f"{type(error).__name__}: {text}"
    )


def _entry(plan: Plan) -> tuple[str, str]:
    module, colon, attribute = plan.entry.partition(":")
    if not colon or not attribute.isidentifier() or not module:
        raise PlanError(
            f"plan {plan.name!r}: entry {plan.entry!r} is not of the form module:NAME, "
            "such as plan:PLAN"
        )
    return module, attribute


def _module(path: str, plan: str) -> str:
    """Return the dotted module name of a plan file; raise PlanError when it has none."""
    pure = PurePosixPath(path)
    parts = pure.with_suffix("").parts if pure.name else ()
    if parts and parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    fine = all(p.isidentifier() and not keyword.iskeyword(p) for p in parts)
    if pure.suffix != ".py" or not parts or not fine or str(pure) != path:
        raise PlanError(
            f"plan {plan!r}: file {path!r} cannot be imported; needed a relative path such as "
            "plan.py or tools/losses.py, of Python names"
        )
    if parts[0] in _TAKEN or parts[0] in sys.stdlib_module_names:
        raise PlanError(
            f"plan {plan!r}: file {path!r} would hide the package {parts[0]!r}; rename it"
        )
    return ".".join(parts)
