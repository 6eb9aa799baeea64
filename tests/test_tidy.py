"""Keeps the tree tidy by reading sources, without imports of the product.

``tests/tidy.toml`` lists what each check still lets pass, and how often. The lists may only shrink:
an entry that is no longer needed fails too. ``python -m tests.test_tidy`` removes such entries and
lowers the others to the present counts; it adds none.
"""

import ast
import functools
import io
import re
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXCEPTIONS = Path(__file__).with_name("tidy.toml")
FLOORS = ("protocol", "storage", "server")
LINES_MAX = 450
FUNCTION_LINES_MAX = 70
FIRST_LINE_WORDS_MAX = 12
AVOIDED_WORDS = (
    "whoever", "nobody", "so long", "so many", "so often", "for ever", "is told", "is said",
    "what became of", "comes to",
)  # fmt: skip
AVOIDED = re.compile(rf"\b({'|'.join(AVOIDED_WORDS)})\b")
BOUND = re.compile(r"_?[A-Z][A-Z0-9_]*_(MAX|MIN|MS|S|BYTES|ROWS)")
CALLED_BY_LIBRARIES = {
    "capture_signals", "handle_exit",  # uvicorn.Server
    "is_allowed_origin", "preflight_response",  # starlette's CORSMiddleware
    "get_path",  # starlette's StaticFiles
    "get_reset_query",  # asyncpg.Connection
    "parse_response",  # redis-py's PubSub
    "get_connection",  # redis-py's ConnectionPool
    "http_open", "https_open",  # urllib's handlers
    "do_GET", "log_message",  # http.server
    "emit",  # logging.Handler
    "pytest_plugins", "pytestmark",
}  # fmt: skip
REGISTERING = {"command", "callback", "field_validator", "model_validator"}
"""Decorators that register a function with a library, which calls the function."""
WORD = re.compile(r"[A-Za-z_]\w*")
UNITS = re.compile(r"_?(SECOND|MINUTE|HOUR|DAY|WEEK)_(MS|S)")


@functools.cache
def sources() -> dict[str, tuple[str, ast.Module]]:
    """Text and syntax tree of every Python file, by path."""
    found = {}
    for part in (*FLOORS, "tests"):
        for path in sorted((ROOT / part).rglob("*.py")):
            text = path.read_text("utf-8")
            found[path.relative_to(ROOT).as_posix()] = (text, ast.parse(text))
    return found


def product() -> Iterator[tuple[str, ast.Module]]:
    """The files of the three floors."""
    for path, (_, tree) in sources().items():
        if path.partition("/")[0] in FLOORS:
            yield path, tree


# --- The checks: each returns its findings with counts, as tidy.toml has them ---------


def long_modules() -> Counter[str]:
    """Modules of more than 450 lines."""
    return Counter(
        path for path, (text, _) in sources().items() if len(text.splitlines()) > LINES_MAX
    )


def long_functions() -> Counter[str]:
    """Functions of more than 70 lines, without their decorators."""
    return Counter(
        f"{path} {node.name}"
        for path, (_, tree) in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    )


def stray_bounds() -> Counter[str]:
    """Numbers with names of bounds (``..._MAX``, ``..._MS``) outside a ``limits.py``, by floor."""
    found: Counter[str] = Counter()
    for path, tree in product():
        if path.endswith("/limits.py"):
            continue
        for name, value in assignments(tree):
            if BOUND.fullmatch(name) and not UNITS.fullmatch(name) and is_number(value):
                found[f"{path.partition('/')[0]} {name}"] += 1
    return found


def assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Names that a module or its classes assign, each with its value."""
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for statement in (one for body in bodies for one in body):
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, value
            elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for part, each in zip(target.elts, value.elts, strict=False):
                    if isinstance(part, ast.Name):
                        yield part.id, each


def is_number(node: ast.expr) -> bool:
    """Whether an expression consists of literal numbers and units of time only."""
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand)
    if isinstance(node, ast.Name | ast.Attribute):
        return UNITS.fullmatch(node.id if isinstance(node, ast.Name) else node.attr) is not None
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def avoided_words() -> Counter[str]:
    """Avoided words in comments and docstrings, by room."""
    found: Counter[str] = Counter()
    for path, (text, tree) in sources().items():
        if not AVOIDED.search(" ".join(re.split(r"[\s#]+", text.lower()))):
            continue  # the tokenizer is slow
        room = path.rpartition("/")[0]
        for comment in comments(text, tree):
            words = AVOIDED.findall(" ".join(comment.lower().split()))
            found.update(f"{room}: {word}" for word in words)
    return found


def comments(text: str, tree: ast.Module) -> Iterator[str]:
    """The comments and the stand-alone strings of a file.

    Stand-alone strings are docstrings, also those of names.
    """
    block: list[str] = []
    last_line = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last_line + 1:
                yield " ".join(block)
                block = []
            block.append(token.string.lstrip("#"))
            last_line = token.start[0]
    yield " ".join(block)
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(said))):
                yield said


def long_first_lines() -> Counter[str]:
    """Docstrings without a short first line, by file.

    That line is a paragraph of at most twelve words.
    """
    return Counter(
        path
        for path, (_, tree) in sources().items()
        for paragraph in first_paragraphs(tree)
        if "\n" in paragraph or len(paragraph.split()) > FIRST_LINE_WORDS_MAX
    )


def first_paragraphs(tree: ast.Module) -> Iterator[str]:
    """The first paragraphs of the docstrings of modules, classes and functions."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text.partition("\n\n")[0]


def shared_class_names() -> Counter[str]:
    """Names that more than one class of the tree has."""
    classes = Counter(
        node.name
        for _, tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    return Counter({name: count for name, count in classes.items() if count > 1})


def dead_names() -> Counter[str]:
    """Functions, classes, methods and module names that only their definition mentions."""
    elsewhere = [ROOT / "pyproject.toml", *sorted((ROOT / "scripts").iterdir())]
    words = Counter(
        word for path in elsewhere if path.is_file() for word in WORD.findall(path.read_text())
    )
    trees = {path: tree for path, (_, tree) in sources().items()}
    return Counter(f"{path} {name}" for path, name in unused_names(trees, words))


def unused_names(trees: dict[str, ast.Module], words: Counter[str]) -> Iterator[tuple[str, str]]:
    """Path and name of each definition in ``trees`` without a use.

    A use is in ``trees`` or in ``words``. A name is used where it is read, imported, or part of a
    string; not in a docstring, in ``__all__``, or inside its own definition. A fixture is also used
    as a parameter.
    """
    used = Counter(words)
    parameters: set[str] = set()
    prefixes: dict[str, set[str]] = {}
    defined: dict[str, list[tuple[str, ast.stmt]]] = defaultdict(list)
    for path, tree in trees.items():
        used.update(names_used(tree))
        parameters |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        prefixes[path] = set(prefixes_asked_for(tree))
        for name, node in definitions(tree):
            defined[name].append((path, node))
            used.subtract(one for one in names_used(node) if one == name)
    # A method's ``getattr`` may be in another file; ``_`` alone as a prefix would match too many
    # names.
    everywhere = set().union(*prefixes.values()) - {"_"}
    for name, places in defined.items():
        if used[name] > 0 or name in CALLED_BY_LIBRARIES or name.startswith(("__", "test_")):
            continue
        for path, node in places:
            handed_to = decorators(node)
            if "fixture" in handed_to and (name in parameters or "autouse" in handed_to):
                continue
            asked_for = name.startswith(tuple(everywhere | prefixes[path]))
            if not handed_to & REGISTERING and not asked_for:
                yield path, name


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """The definitions of a module: its functions, names, classes and their methods."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name, node
            case ast.Assign() | ast.AnnAssign():
                for part in ast.walk(node):
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                        yield part.id, node
    for each in ast.walk(tree):
        if isinstance(each, ast.ClassDef):
            yield each.name, each
            yield from ((one.name, one) for one in each.body if isinstance(one, functions))


def names_used(tree: ast.AST) -> Iterator[str]:
    """Names that a tree reads or has in strings, with repetitions."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    texts += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    unread = {id(part) for text in texts for part in literals(text)}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
                yield name
            case ast.alias(name=name):
                yield from name.split(".")
            case ast.keyword(arg=str(name)):
                yield name
            case ast.Constant(value=str(text)) if id(node) not in unread:
                yield from WORD.findall(text)


def literals(node: ast.expr) -> list[ast.expr]:
    """The literals of an expression of literals only: a docstring, a list."""
    if isinstance(node, ast.List | ast.Tuple):
        return [part for each in node.elts for part in literals(each)]
    return [node] if isinstance(node, ast.Constant) else []


def prefixes_asked_for(tree: ast.Module) -> Iterator[str]:
    """Prefixes of the names that a file gets by ``getattr(self, f"do_{name}")``."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Name(id="getattr"),
                args=[_, ast.JoinedStr(values=[ast.Constant(value=str(prefix)), *_]), *_],
            ):
                yield prefix


def decorators(node: ast.stmt) -> set[str]:
    """The words of a definition's decorators: ``fixture`` and ``autouse``, ``command``."""
    return {
        word
        for decorator in getattr(node, "decorator_list", [])
        for word in WORD.findall(ast.unparse(decorator))
    }


def untested_modules() -> Counter[str]:
    """Modules of the product without a test of their name.

    ``server/api/holds.py`` has ``test_holds.py`` or ``test_api_holds.py`` in ``tests/server/``. A
    module without functions needs no test: it only declares values for others.
    """
    tests: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        if path.startswith("tests/"):
            tests[path.split("/")[1]].add(Path(path).stem)
    found: Counter[str] = Counter()
    for path, tree in product():
        floor, room, name = path.partition("/")[0], Path(path).parent.name, Path(path).stem
        has_functions = any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree)
        )
        if name.startswith("__") or not has_functions:
            continue
        if not {f"test_{name}", f"test_{room}_{name}"} & tests[floor]:
            found[path] = 1
    return found


CHECKS: dict[str, Callable[[], Counter[str]]] = {
    check.__name__: functools.cache(check)
    for check in (
        long_modules,
        long_functions,
        stray_bounds,
        avoided_words,
        long_first_lines,
        shared_class_names,
        dead_names,
        untested_modules,
    )
}


# --- The tests -----------------------------------------------------------------------


def exceptions() -> dict[str, dict[str, int]]:
    return tomllib.loads(EXCEPTIONS.read_text("utf-8"))


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_untidy_is_added(name: str) -> None:
    allowed = exceptions()[name]
    added = {one: count for one, count in CHECKS[name]().items() if count > allowed.get(one, 0)}
    assert not added, f"more than tests/tidy.toml allows: {added}"


@pytest.mark.parametrize("name", CHECKS)
def test_every_exception_is_needed(name: str) -> None:
    spare = exceptions()[name].keys() - CHECKS[name]().keys()
    assert not spare, f"run `python -m tests.test_tidy`: {spare}"


def test_every_list_has_a_check() -> None:
    assert exceptions().keys() == CHECKS.keys()


def test_an_avoided_word_is_found_across_lines() -> None:
    text = '"""It waits so\nlong."""\n# is  \n# told, and\nx = "nobody"  # for ever\n'
    words = [AVOIDED.findall(" ".join(one.split())) for one in comments(text, ast.parse(text))]
    assert sorted(word for found in words for word in found) == ["for ever", "is told", "so long"]


def test_a_first_line_is_a_paragraph() -> None:
    text = f'"""One two\nthree.\n\n{"more " * 20}"""\ndef four():\n    """Five six."""\n'
    text += 'class Seven:\n    """Eight."""\n    async def nine(self): "Ten."\ndef bare(): ...\n'
    found = sorted(first_paragraphs(ast.parse(text)))
    assert found == ["Eight.", "Five six.", "One two\nthree.", "Ten."]


def test_a_bound_is_a_number_of_its_own() -> None:
    tree = ast.parse(
        "A_MAX = 3\nB_MS: int = 2 * 30_000\nC_S = limits.C_MS / 1000\nD = 4\nE_MIN = 5 * HOUR_MS\n"
    )
    found = [name for name, value in assignments(tree) if is_number(value)]
    assert [name for name in found if BOUND.fullmatch(name)] == ["A_MAX", "B_MS", "E_MIN"]


def test_a_name_without_a_use_is_dead() -> None:
    one = """
__all__ = ["listed"]
SPARE = USED = 1
def listed(): return listed
def fetched(): "Not ``read``: a docstring."
def read(): ...
class Kept:
    def do_this(self): getattr(self, f"do_{USED}")
    def other(self): return self.other
    def _hidden(self): ...
@pytest.fixture(autouse=True)
def always(): ...
@pytest.fixture
def sometimes(): ...
@pytest.fixture
def never(): ...
@app.command("run")
def ran(): ...
"""
    two = 'from one import Kept\ngetattr(Kept, "fetched")\ndef test_it(sometimes): ...\n'
    trees = {"one.py": ast.parse(one), "two.py": ast.parse(two)}
    found = sorted(name for _, name in unused_names(trees, Counter()))
    assert found == ["SPARE", "_hidden", "listed", "never", "other", "read"]
    assert "read" not in {name for _, name in unused_names(trees, Counter(["read"]))}


# --- Removing exceptions that are no longer needed ------------------------------------


def shrink() -> None:
    """Removes exceptions no longer needed, and lowers counts that are too high."""
    kept = []
    section = ""
    for line in EXCEPTIONS.read_text("utf-8").splitlines():
        if started := re.fullmatch(r"\[(\w+)\]", line):
            section = started[1]
        entry = re.fullmatch(r'"(.*)" = (\d+)', line)
        if entry is None:
            kept.append(line)
        elif count := min(CHECKS[section]()[entry[1]], int(entry[2])):
            kept.append(f'"{entry[1]}" = {count}')
    EXCEPTIONS.write_text("\n".join(kept) + "\n", "utf-8")


if __name__ == "__main__":
    shrink()
