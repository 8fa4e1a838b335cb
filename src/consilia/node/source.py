"""What can be told of a plan by reading it, without running a line: advice for its reviewer.

Findings name what a reviewer should look at; their absence proves nothing, as Python can hide
anything from a reader. What holds is the sandbox, and the reviewer's own reading.
"""

import ast
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from consilia.wire.planform import entry_file
from consilia.wire.v1 import MAX_ARGUMENTS, Plan, Scalar

_CALLS: Mapping[str, str] = {
    "open": "opens a file",
    "exec": "runs text as code",
    "eval": "runs text as code",
    "compile": "turns text into code",
    "__import__": "imports by name",
    "globals": "reaches into its module's names",
    "getattr": "looks a name up at run time",
    "setattr": "changes an object's attributes by name",
    "breakpoint": "starts a debugger",
    "input": "reads from the terminal",
}
_MODULES: Mapping[str, str] = {
    "os": "operating system: files, environment, processes",
    "sys": "the interpreter itself",
    "subprocess": "starts programs",
    "socket": "network",
    "ssl": "network",
    "http": "network",
    "urllib": "network",
    "requests": "network",
    "httpx": "network",
    "aiohttp": "network",
    "ftplib": "network",
    "smtplib": "network",
    "ctypes": "calls machine code",
    "cffi": "calls machine code",
    "mmap": "memory mapped files",
    "multiprocessing": "starts processes",
    "threading": "starts threads",
    "concurrent": "starts threads or processes",
    "asyncio": "network and processes",
    "signal": "process signals",
    "shutil": "copies and removes files",
    "pathlib": "files",
    "tempfile": "files",
    "glob": "lists files",
    "io": "files and streams",
    "pickle": "can run code while loading",
    "marshal": "loads compiled code",
    "shelve": "can run code while loading",
    "importlib": "imports by name",
    "runpy": "runs other code",
    "inspect": "reads frames and source",
    "gc": "reaches every object in memory",
    "time": "clocks: a timing can carry information",
    "sqlite3": "files",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a reviewer should look at: where it is, and why it is listed."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


def findings(plan: Plan) -> tuple[Finding, ...]:
    """List imports and calls that a reviewer should look at, in file and line order."""
    found: list[Finding] = []
    for path, text in sorted(plan.files.items()):
        if not path.endswith(".py"):
            found.append(Finding(path, 1, "is not Python source; see how the plan uses it"))
            continue
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            line = getattr(e, "lineno", None) or 1
            found.append(Finding(path, line, f"cannot be read as Python: {type(e).__name__}"))
            continue
        found += sorted(set(_of_tree(path, tree)), key=lambda f: (f.line, f.what))
    return tuple(found)


def declared_arguments(plan: Plan) -> Mapping[str, Scalar] | None:
    """Return the names and defaults in the entry's `arguments={...}`, None when not literal.

    Only a literal dict of scalars in the call that makes the entry point can be read without
    running the plan; {} when that call declares none.
    """
    file, attribute = entry_file(plan), plan.entry.rpartition(":")[2]
    try:
        tree = ast.parse(plan.files[file]) if file else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        return None
    made: ast.expr | None = None
    for node in tree.body:  # the last assignment wins, as when the module runs
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(t, ast.Name) and t.id == attribute for t in targets):
            made = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if not isinstance(made, ast.Call) or any(k.arg is None for k in made.keywords):
        return None
    given = next((k.value for k in made.keywords if k.arg == "arguments"), None)
    return {} if given is None else _literal_arguments(given)


def difference(old: Plan, new: Plan) -> str:
    """Return a unified diff of entry, requirements and files, "" when none differs."""
    out: list[str] = []
    for path in sorted(_parts(old).keys() | _parts(new).keys()):
        before, after = _parts(old).get(path, ""), _parts(new).get(path, "")
        out += difflib.unified_diff(
            before.splitlines(), after.splitlines(), f"a/{path}", f"b/{path}", lineterm=""
        )
    return "\n".join(out)


def _parts(plan: Plan) -> dict[str, str]:
    head = {"(entry)": plan.entry, "(requirements)": "\n".join(sorted(plan.requirements))}
    return {**head, **plan.files}


def _literal_arguments(node: ast.expr) -> dict[str, Scalar] | None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(value, dict) or len(value) > MAX_ARGUMENTS:
        return None
    for name, default in value.items():
        if not isinstance(name, str) or not isinstance(default, bool | int | float | str):
            return None
        if isinstance(default, float) and not math.isfinite(default):
            return None
    return value


def _of_tree(path: str, tree: ast.AST) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _import(path, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            yield from _import(path, node.lineno, node.module or ".")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if why := _CALLS.get(node.func.id):
                yield Finding(path, node.lineno, f"calls {node.func.id}: {why}")
        elif isinstance(node, ast.Attribute):
            if (
                node.attr.startswith("__")
                and node.attr.endswith("__")
                and node.attr != "__init__"
            ):
                yield Finding(path, node.lineno, f"uses {node.attr}: reaches behind an object")
            elif node.attr in ("load", "save", "to_csv", "tofile", "fromfile", "memmap"):
                yield Finding(path, node.lineno, f"uses .{node.attr}: may read or write files")


def _import(path: str, line: int, module: str) -> Iterator[Finding]:
    why = _MODULES.get(module.partition(".")[0])
    yield Finding(path, line, f"imports {module}" + (f": {why}" if why else ""))
