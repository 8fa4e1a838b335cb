"""What a reviewer should look at in a plan's source, found by reading it: advice, no verdict.

Nothing of the plan is run. Each finding has its line, a kind, how much it weighs, and one plain
sentence. None found proves nothing, as Python can hide anything from a reader: what holds is
the sandbox and the reviewer's own reading.
"""

import ast
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from consilia.wire.planform import module_of
from consilia.wire.v1 import Plan

Kind = Literal["import", "file", "network", "process", "reflection", "obfuscation", "source"]
Severity = Literal["note", "caution", "danger"]  # in rising order
MAX_FINDINGS = 2000  # of one plan
LONG_LINE = 250  # characters, beyond which a reader's eye misses the end
_BLOB = re.compile(r"[A-Za-z0-9+/=_\-]{80,}|(?:\\x[0-9a-f]{2}){20,}")
_RANDOM = 4.0  # bits a character; English has about 4 with blanks, base64 up to 6

_MODULES: Mapping[str, tuple[Kind, Severity, str]] = {
    **dict.fromkeys(
        ("socket", "ssl", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib",
         "smtplib", "xmlrpc", "telnetlib", "paramiko", "websockets", "asyncio", "socketserver"),
        ("network", "danger", "it can speak to a network; the sandbox has none"),
    ),
    **dict.fromkeys(
        ("subprocess", "pty", "multiprocessing", "concurrent", "threading", "signal",
         "_thread"),
        ("process", "danger", "it starts or steers programs, processes or threads"),
    ),
    **dict.fromkeys(
        ("os", "posix"),
        ("process", "danger", "it reaches files, environment and processes"),
    ),
    **dict.fromkeys(
        ("pathlib", "shutil", "tempfile", "glob", "io", "mmap", "sqlite3", "zipfile", "tarfile",
         "fileinput", "csv", "logging"),
        ("file", "caution", "it reads or writes files"),
    ),
    **dict.fromkeys(
        ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
        ("reflection", "danger", "what it loads can run code that is not in this source"),
    ),
    **dict.fromkeys(
        ("ctypes", "cffi", "_ctypes", "numba", "cython"),
        ("reflection", "danger", "it runs machine code that cannot be read here"),
    ),
    **dict.fromkeys(
        ("importlib", "runpy", "pkgutil", "imp", "code", "codeop", "builtins", "ast", "dis",
         "types", "inspect", "gc", "sys", "weakref", "operator", "atexit"),
        ("reflection", "caution", "it reaches code and objects that are not named here"),
    ),
    **dict.fromkeys(
        ("base64", "binascii", "codecs", "zlib", "gzip", "bz2", "lzma"),
        ("obfuscation", "caution", "it can unpack text or code that a reader does not see"),
    ),
    **dict.fromkeys(
        ("time", "datetime"),
        ("import", "note", "a clock: how long something takes can carry information"),
    ),
}  # fmt: skip
_CALLS: Mapping[str, tuple[Kind, Severity, str]] = {
    **dict.fromkeys(("exec", "eval", "compile"), ("reflection", "danger", "runs text as code")),
    "__import__": ("reflection", "danger", "imports by a name that may be made up on the way"),
    **dict.fromkeys(
        ("globals", "locals", "vars"), ("reflection", "caution", "reaches names by their text")
    ),
    **dict.fromkeys(
        ("getattr", "setattr", "delattr"),
        ("reflection", "caution", "reaches an attribute by a name that may be made up"),
    ),
    "open": ("file", "danger", "opens a file"),
    "input": ("process", "caution", "waits for a terminal"),
    "breakpoint": ("reflection", "danger", "starts a debugger"),
    "print": ("file", "note", "writes to the job's log, which stays at this site"),
}
_ATTRIBUTES: Mapping[str, tuple[Kind, Severity, str]] = {
    **dict.fromkeys(
        ("load", "save", "savez", "savetxt", "loadtxt", "genfromtxt", "tofile", "fromfile",
         "memmap", "to_csv", "read_csv", "to_pickle", "read_pickle", "to_parquet", "open",
         "read_parquet", "read_text", "write_text", "read_bytes", "write_bytes", "unlink"),
        ("file", "caution", "may read or write a file"),
    ),
    **dict.fromkeys(
        ("system", "popen", "fork", "forkpty", "kill", "killpg", "execv", "execve", "spawnv",
         "Popen", "check_output", "posix_spawn"),
        ("process", "danger", "starts or ends a process"),
    ),
    **dict.fromkeys(
        ("urlopen", "urlretrieve", "create_connection", "getaddrinfo", "gethostbyname",
         "load_state_dict_from_url", "sendto"),
        ("network", "danger", "speaks to a network"),
    ),
    **dict.fromkeys(
        ("b64decode", "a85decode", "unhexlify", "fromhex", "decompress"),
        ("obfuscation", "danger", "unpacks text or code that a reader does not see"),
    ),
    **dict.fromkeys(
        ("ctypeslib", "cpp_extension", "import_module", "cdll", "CDLL"),
        ("reflection", "danger", "loads code that is not in this source"),
    ),
}  # fmt: skip
_PLAIN_DUNDERS = frozenset({"__init__", "__name__", "__doc__", "__len__", "__getitem__"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a reviewer should look at: where it is, of what kind, and why it is listed."""

    file: str
    line: int
    kind: Kind
    severity: Severity
    what: str  # one plain sentence, without a full stop

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.severity}, {self.kind}: {self.what}"


def findings(plan: Plan) -> tuple[Finding, ...]:
    """List what a reviewer should look at, in file and line order; at most MAX_FINDINGS."""
    own = {module_of(path).partition(".")[0] for path in plan.files if path.endswith(".py")}
    found: list[Finding] = []
    for path, text in sorted(plan.files.items()):
        if not path.endswith(".py"):
            what = "is not Python source; see how the plan uses it"
            found.append(Finding(path, 1, "source", "caution", what))
            continue
        seen = set(_of_text(path, text))
        try:
            seen.update(_of_tree(path, ast.parse(text), own))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            line = getattr(e, "lineno", None) or 1
            what = f"cannot be read as Python: {type(e).__name__}"
            seen.add(Finding(path, line, "source", "danger", what))
        found += sorted(seen, key=lambda f: (f.line, f.kind, f.what))
    if len(found) > MAX_FINDINGS:
        what = f"{len(found)} findings, of which the first {MAX_FINDINGS} are shown"
        found[MAX_FINDINGS:] = [Finding(found[-1].file, 1, "source", "danger", what)]
    return tuple(found)


def _of_text(path: str, text: str) -> Iterator[Finding]:
    """Find what only the characters tell."""
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LONG_LINE:
            what = f"the line has {len(line)} characters: read it to its end"
            yield Finding(path, number, "obfuscation", "caution", what)
        hidden = {c for c in line if c not in "\t\f" and unicodedata.category(c)[0] == "C"}
        for character in sorted(hidden):
            name = unicodedata.name(character, f"U+{ord(character):04X}")
            what = f"holds the invisible character {name}, which can disguise what a line says"
            yield Finding(path, number, "obfuscation", "danger", what)


def _of_tree(path: str, tree: ast.AST, own: set[str]) -> Iterator[Finding]:
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _import(path, node.lineno, alias.name, own)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from _import(path, node.lineno, node.module or "", own)
            for alias in node.names:
                if entry := _ATTRIBUTES.get(alias.name):
                    yield _made(path, node.lineno, f"imports {alias.name}", entry)
        elif isinstance(node, ast.Name):
            yield from _name(path, node, id(node) in called)
        elif isinstance(node, ast.Attribute):
            yield from _attribute(path, node)
        elif isinstance(node, ast.Constant):
            yield from _constant(path, node)


def _import(path: str, line: int, module: str, own: set[str]) -> Iterator[Finding]:
    top = module.partition(".")[0]
    if top in own:
        return
    entry = _MODULES.get(top)
    if entry is None:
        yield Finding(path, line, "import", "note", f"imports {module}")
    else:
        yield _made(path, line, f"imports {module}", entry)


def _name(path: str, node: ast.Name, called: bool) -> Iterator[Finding]:
    if not node.id.isascii():
        what = f"the name {node.id!r} is not plain ASCII: letters of other scripts look alike"
        yield Finding(path, node.lineno, "obfuscation", "danger", what)
    if node.id in ("__builtins__", "__loader__", "__spec__"):
        what = f"uses {node.id}, through which everything can be reached"
        yield Finding(path, node.lineno, "reflection", "danger", what)
    entry = _CALLS.get(node.id)
    if entry is None or not isinstance(node.ctx, ast.Load):
        return
    if called:
        yield _made(path, node.lineno, f"calls {node.id}", entry)
    elif entry[1] == "danger":
        what = f"names {node.id} without calling it, which can hide where it is called"
        yield Finding(path, node.lineno, "obfuscation", "danger", what)


def _attribute(path: str, node: ast.Attribute) -> Iterator[Finding]:
    name = node.attr
    if name.startswith("__") and name.endswith("__") and name not in _PLAIN_DUNDERS:
        what = f"uses {name}, which reaches behind an object"
        yield Finding(path, node.lineno, "reflection", "danger", what)
    elif entry := _ATTRIBUTES.get(name):
        yield _made(path, node.lineno, f"uses .{name}", entry)


def _constant(path: str, node: ast.Constant) -> Iterator[Finding]:
    value = node.value
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return
    blob = _BLOB.search(value)
    unreadable = sum(not c.isprintable() and c not in "\n\t\r" for c in value)
    if (blob and _bits(blob[0]) > _RANDOM) or unreadable > 20:
        what = f"holds a text of {len(value)} characters that nobody can read"
        yield Finding(path, node.lineno, "obfuscation", "danger", what)


def _bits(text: str) -> float:
    """Return the Shannon entropy of a text's characters, in bits a character."""
    counts, total = Counter(text), len(text)
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def _made(path: str, line: int, what: str, entry: tuple[Kind, Severity, str]) -> Finding:
    kind, severity, why = entry
    return Finding(path, line, kind, severity, f"{what}: {why}")
