"""Python's own library as text: the modules of the running interpreter, with their source and docstrings."""

import ast
import importlib
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, ExtensionFileLoader
from importlib.util import decode_source, find_spec
from pathlib import Path
from textwrap import dedent
from types import ModuleType

from lab.errors import UsageError

# Left out: tests, demonstrations, tables that a script printed, and the file of topics, which is read on its own.
TESTS = {"test", "tests", "idle_test", "turtledemo"}
TABLES = {"encodings", "pydoc_data"}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Doc:
    """A docstring, indentation removed; the signature is that of a function or a class, empty where there is none."""

    name: str  # statistics.NormalDist.zscore
    signature: str  # def zscore(self, x):
    text: str


@dataclass(frozen=True)
class Module:
    """One module (or pydoc topic, whose name starts with `topic:`) and what was read from it."""

    name: str
    source: str  # empty for modules in C and for topics
    docs: tuple[Doc, ...]


def library() -> Path:
    """The folder of the standard library; raises UsageError where it carries no source."""
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "os.py").is_file():
        raise UsageError(f"no Python source under {root}; use a Python that carries its standard library as .py files.")
    return root


def source_files() -> list[tuple[str, bytes]]:
    """(module name, bytes) of every readable module of the library, by name."""
    root = library()
    files = []
    for top in sys.stdlib_module_names - TABLES:  # by name: a walk of the root would visit site-packages
        for path in [root / f"{top}.py", *(root / top).rglob("*.py")]:
            parts = path.relative_to(root).with_suffix("").parts
            if path.is_file() and not TESTS & set(parts):
                files.append((".".join(parts).removesuffix(".__init__"), path.read_bytes()))
    return sorted(files)


def collect(files: list[tuple[str, bytes]]) -> list[Module]:
    """Every module, parsed without importing it; then the modules in C, which must be imported; then the topics."""
    modules = [read_module(name, decode_source(data)) for name, data in files]
    return [*modules, *c_modules(), *topics()]


def read_module(name: str, source: str) -> Module:
    """The docstrings of one source file, in source order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own invalid escapes
        tree = ast.parse(source)
    lines = source.split("\n")
    docs = [Doc(name, "", text)] if (text := ast.get_docstring(tree)) else []
    docs += [
        Doc(full_name, signature_lines(node, lines), text)
        for full_name, node in definitions(tree, name)
        if (text := ast.get_docstring(node))
    ]
    return Module(name, source, tuple(docs))


def definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """(qualified name, node) of all classes and functions; visits statements only, the fifth of a tree."""
    for block in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, block, ()):
            if isinstance(child, Definition):
                name = f"{prefix}.{child.name}"
                yield name, child
                yield from definitions(child, name)
            elif isinstance(child, ast.stmt | ast.ExceptHandler):
                yield from definitions(child, prefix)


def signature_lines(node: Definition, lines: list[str]) -> str:
    """The lines from `def` or `class` to the docstring; empty where both share a line."""
    docstring = node.body[0]
    if lines[docstring.lineno - 1].encode()[: docstring.col_offset].strip():  # ast counts columns in bytes
        return ""
    header = lines[node.lineno - 1 : docstring.lineno - 1]
    return dedent("\n".join(line.expandtabs() for line in header))


def c_modules() -> Iterator[Module]:
    """The modules that have no Python source."""
    for name in sorted(sys.stdlib_module_names):
        if name.startswith(("_test", "_xx", "xx")) or name in ("_ctypes_test", "readline"):  # readline writes to stdout
            continue
        spec = find_spec(name)
        if spec is None or not (spec.loader is BuiltinImporter or isinstance(spec.loader, ExtensionFileLoader)):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # deprecation is no concern of a reader
                module = importlib.import_module(name)
        except ImportError:  # built, but a shared library it needs (Tk, say) is not installed
            continue
        yield Module(name, "", tuple(c_docs(module)))


def c_docs(module: ModuleType) -> Iterator[Doc]:
    """The docstrings a module in C defines: its own, its functions', its classes' and their members'."""
    name = module.__name__
    if isinstance(module.__doc__, str):
        yield Doc(name, "", inspect.cleandoc(module.__doc__))
    for key, value in sorted(vars(module).items()):
        if isinstance(value, ModuleType) or getattr(value, "__module__", None) != name:
            continue
        yield from c_doc(f"{name}.{key}", key, value)
        if isinstance(value, type):
            for member, attribute in sorted(vars(value).items()):
                yield from c_doc(f"{name}.{key}.{member}", member, attribute)


def c_doc(full_name: str, name: str, value: object) -> Iterator[Doc]:
    """The docstring of one object in C, if it carries one."""
    text = getattr(value, "__doc__", None)
    if not isinstance(text, str) or not text.strip() or text == type(value).__doc__:
        return
    arguments = getattr(value, "__text_signature__", None)
    signature = f"def {name}{arguments.replace('$', '')}:" if arguments and not isinstance(value, type) else ""
    yield Doc(full_name, signature, inspect.cleandoc(text))


def topics() -> Iterator[Module]:
    """The language reference, as pydoc carries it."""
    from pydoc_data.topics import topics as texts

    for name, text in sorted(texts.items()):
        yield Module(f"topic:{name}", "", (Doc(f"topic:{name}", "", text.strip()),))
