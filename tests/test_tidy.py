"""Keeps the tree tidy, by reading the sources: nothing of the product is imported.

``tests/tidy.toml`` lists what each check still lets pass, and how often. The lists may only
shrink: an entry that is no longer needed fails too. ``python -m tests.test_tidy`` takes such
entries out and lowers the others to what is there; it adds none.
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
AVOIDED_WORDS = (
    "whoever", "nobody", "so long", "so many", "so often", "for ever", "is told", "is said",
    "what became of", "comes to",
)  # fmt: skip
AVOIDED = re.compile(rf"\b({'|'.join(AVOIDED_WORDS)})\b")
BOUND = re.compile(r"_?[A-Z][A-Z0-9_]*_(MAX|MIN|MS|S|BYTES|ROWS)")
UNITS = re.compile(r"_?(SECOND|MINUTE|HOUR|DAY|WEEK)_(MS|S)")


@functools.cache
def sources() -> dict[str, tuple[str, ast.Module]]:
    """Every Python file of the tree by its path, with its text and its syntax tree."""
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


# --- The checks: each answers what it finds, and how often, as tidy.toml has it ------


def long_modules() -> Counter[str]:
    """Modules of more than 450 lines."""
    return Counter(
        path for path, (text, _) in sources().items() if len(text.splitlines()) > LINES_MAX
    )


def long_functions() -> Counter[str]:
    """Functions of more than 70 lines, decorators left out."""
    return Counter(
        f"{path} {node.name}"
        for path, (_, tree) in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    )


def stray_bounds() -> Counter[str]:
    """Numbers named as bounds are (``..._MAX``, ``..._MS``) outside a ``limits.py``, by floor."""
    found: Counter[str] = Counter()
    for path, tree in product():
        if path.endswith("/limits.py"):
            continue
        for name, value in assignments(tree):
            if BOUND.fullmatch(name) and not UNITS.fullmatch(name) and is_number(value):
                found[f"{path.partition('/')[0]} {name}"] += 1
    return found


def assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Names that a module or a class of it assigns, each with what is assigned."""
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
    """Whether an expression is made of literal numbers and units of time alone."""
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
    """The comments of a file, and the strings that stand alone: docstrings, and those of names."""
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


def shared_class_names() -> Counter[str]:
    """Names that more than one class of the tree has."""
    classes = Counter(
        node.name
        for _, tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    return Counter({name: count for name, count in classes.items() if count > 1})


def untested_modules() -> Counter[str]:
    """Modules of the product without a test of their name.

    ``server/api/holds.py`` has ``test_holds.py`` or ``test_api_holds.py`` in ``tests/server/``.
    """
    tests: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        if path.startswith("tests/"):
            tests[path.split("/")[1]].add(Path(path).stem)
    found: Counter[str] = Counter()
    for path, _ in product():
        floor, room, name = path.partition("/")[0], Path(path).parent.name, Path(path).stem
        if name.startswith("__"):
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
        shared_class_names,
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


def test_a_bound_is_a_number_of_its_own() -> None:
    tree = ast.parse(
        "A_MAX = 3\nB_MS: int = 2 * 30_000\nC_S = limits.C_MS / 1000\nD = 4\nE_MIN = 5 * HOUR_MS\n"
    )
    found = [name for name, value in assignments(tree) if is_number(value)]
    assert [name for name in found if BOUND.fullmatch(name)] == ["A_MAX", "B_MS", "E_MIN"]


# --- Taking out what is no longer needed ---------------------------------------------


def shrink() -> None:
    """Takes exceptions out that are no longer needed, and lowers those that are too many."""
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
