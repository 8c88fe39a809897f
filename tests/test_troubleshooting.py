"""docs/TROUBLESHOOTING.md has one row for each message of a LabError, and no row for a message
that is gone.
"""

import ast
import itertools
import re

from labkit.profiles import ROOT

GAP = "\0"  # what a message holds only when it is raised
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef)


def texts(node: ast.AST | None, names: dict[str, list[str]]) -> list[str]:
    """The texts that an expression can be; a name is those it was given, all else is GAP."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.Name):
        return names.get(node.id, [GAP])
    if isinstance(node, ast.FormattedValue):
        return texts(node.value, names)
    if isinstance(node, ast.IfExp):
        return texts(node.body, names) + texts(node.orelse, names)
    if isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
    ):
        parts = node.values if isinstance(node, ast.JoinedStr) else (node.left, node.right)
        return [
            "".join(choice)
            for choice in itertools.product(*(texts(part, names) for part in parts))
        ]
    return [GAP]


def given(scope: ast.AST) -> dict[str, list[str]]:
    """Name -> the texts that are assigned to it in *scope*, or passed to it as a parameter of a
    function in there.
    """
    found: dict[str, list[str]] = {}
    inner = {
        node.name: [a.arg for a in node.args.args]
        for node in ast.walk(scope)
        if isinstance(node, SCOPES)
    }
    for node in ast.walk(scope):
        pairs = []
        if isinstance(node, ast.Assign):
            pairs = [
                (target.id, node.value) for target in node.targets if isinstance(target, ast.Name)
            ]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in inner
        ):
            pairs = list(zip(inner[node.func.id], node.args, strict=False))
            pairs += [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
        for name, value in pairs:
            found.setdefault(name, []).extend(text for text in texts(value, {}) if text.strip(GAP))
    return {name: values for name, values in found.items() if values}


def outermost(node: ast.AST):
    """The functions and methods in *node* that are in no other function."""
    for child in ast.iter_child_nodes(node):
        yield from [child] if isinstance(child, SCOPES) else outermost(child)


def sources() -> dict[str, ast.Module]:
    """Path -> syntax tree, of every module of labkit."""
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for path in sorted((ROOT / "labkit").rglob("*.py"))
    }


def messages() -> list[tuple[str, str]]:
    """(file and line, message) of every LabError."""
    found = []
    for name, tree in sources().items():
        for scope in outermost(tree):
            names = given(scope)
            calls = (
                n
                for n in ast.walk(scope)
                if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "LabError"
            )
            found += [
                (f"{name}:{call.lineno}", text)
                for call in calls
                for text in texts(call.args[0], names)
            ]
    return found


def rows() -> dict[str, list[re.Pattern]]:
    """First cell -> its keys: what is there in backticks, not in brackets; "..." is any text.

    Without the rows that say "no error", and the table of failures that say nothing.
    """
    found = {}
    text = (
        (ROOT / "docs" / "TROUBLESHOOTING.md")
        .read_text()
        .split("\n## Failures that say nothing")[0]
    )
    for cell in re.findall(r"^\| (.+?) \|", text, re.MULTILINE):
        keys = [key for key, _ in re.findall(r"`([^`]+)`|(\([^)]*\))", cell) if key]
        if keys and "no error)" not in cell:
            assert cell not in found, f"two rows for {cell}"
            found[cell] = [
                re.compile(".*".join(map(re.escape, key.split("..."))), re.DOTALL) for key in keys
            ]
    return found


def test_every_error_has_one_row():
    table, wrong = rows(), []
    for where, message in messages():
        fitting = [
            cell for cell, keys in table.items() if any(key.search(message) for key in keys)
        ]
        if len(fitting) != 1:
            wrong.append(
                f"{where}: {len(fitting)} rows for: {message.replace(GAP, '...')[:120]} "
                f"{fitting or ''}"
            )
    assert not wrong, "docs/TROUBLESHOOTING.md:\n" + "\n".join(wrong)


def test_every_row_is_of_a_message_that_exists():
    said = [message for _, message in messages()] + [(ROOT / "lab").read_text()]
    for tree in sources().values():  # not every message is a LabError: some are printed
        nodes = list(ast.walk(tree))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        literals = [
            n
            for n in nodes
            if isinstance(n, ast.Constant | ast.JoinedStr) and id(n) not in docstrings
        ]
        said += [text for node in literals for text in texts(node, {})]
    stale = [
        f"{key.pattern}, in the row {cell}"
        for cell, keys in rows().items()
        for key in keys
        if not any(map(key.search, said))
    ]
    assert not stale, "docs/TROUBLESHOOTING.md, no such message:\n" + "\n".join(stale)
