"""Count the lines of eight jobs with fastvar, and without it. `docs/examples.md` has the table that this prints.

    python tools/lines.py

Blank lines, comments and docstrings do not count. A part is a file, or `FILE:NAME,...`, functions, classes and
assignments in it; `PAGE.md:LANGUAGE` are the blocks of that language.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, BEFORE = "examples", "tests/before"
JOBS = {  # what is counted without fastvar, and with it
    "own backprop with batch norm, resumed, stopped early": (
        [f"{BEFORE}/batch_norm.py"],
        [f"{EXAMPLES}/batch_norm.py", f"{EXAMPLES}/mlp.py:Dense,MLP"],
    ),
    "the steps of a TensorFlow 1 program": (["docs/tensorflow.md:py"], ["docs/tensorflow.md:python"]),
    "a tree of weights in JAX": (
        [f"{EXAMPLES}/digits_jax.py:start,logits,loss,gradient,OPTAX,update,with_optax"],
        [f"{EXAMPLES}/digits_jax.py:start,logits,loss,with_fastvar"],
    ),
    "a convolutional network in PyTorch": ([f"{EXAMPLES}/cnn_torch.py"], [f"{EXAMPLES}/cnn_torch.py"]),
    "a fit in bounds": ([f"{BEFORE}/oscillator.py"], [f"{EXAMPLES}/oscillator.py"]),
    "evolution strategies": ([f"{BEFORE}/evolution.py:main"], [f"{EXAMPLES}/evolution.py:main"]),
    "a factorisation with sparse rows": ([f"{BEFORE}/factorisation.py"], [f"{EXAMPLES}/factorisation.py"]),
    "a job killed, resumed, inspected, converted": (
        [f"{BEFORE}/operations.sh", f"{BEFORE}/operations.py"],
        [f"{EXAMPLES}/operations.sh"],
    ),
    "a library with a rule of its own": (
        [f"{EXAMPLES}/library/pyproject.toml", f"{BEFORE}/library.py"],
        [f"{EXAMPLES}/library/pyproject.toml", f"{EXAMPLES}/library/normalized_steps/__init__.py"],
    ),
    "a notebook": (
        [f"{BEFORE}/notebook.py", f"{BEFORE}/batch_norm.py:AdamW,check_gradients,save"],
        [f"{EXAMPLES}/notebook.ipynb"],
    ),
}
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of(part: str) -> int:
    """Return the number of lines of code of a part."""
    name, _, chosen = part.partition(":")
    text = (ROOT / name).read_text()
    if name.endswith(".md"):
        return len(code("\n".join(re.findall(rf"```{chosen}\n(.*?)```", text, re.DOTALL))))
    if name.endswith(".ipynb"):
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return sum(len(code("".join(cell))) for cell in cells)
    if name.endswith(".py"):
        return len(code(text) & named(text, chosen.split(",")) if chosen else code(text))
    return sum(bool(line.strip()) and not line.startswith("#") for line in text.splitlines())


def code(text: str) -> set[int]:
    """Return the numbers of the lines of Python that hold more than comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= span(node)
    return lines


def named(text: str, names: list[str]) -> set[int]:
    """Return the numbers of the lines of functions, classes and assignments."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            decorators = set().union(*map(span, node.decorator_list))
            found[node.name] = span(node) | decorators
        elif isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = span(node)
    return set().union(*(found[name] for name in names))


def span(node: ast.stmt | ast.expr) -> set[int]:
    return {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def table() -> str:
    rows = ["| job | lines without fastvar | with it |", "| --- | ---: | ---: |"]
    for job, parts in JOBS.items():
        before, after = (sum(map(lines_of, each)) for each in parts)
        rows.append(f"| {job} | {before} | {after} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
