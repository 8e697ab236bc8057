"""Faults made from the syntax tree: one small change at one place, drawn evenly over files and kinds."""

import ast
import copy
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from mutation_faults import ROOT, Mutant

# In annotations, errors and what is printed a change is no fault of the model.
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params"}
SKIPPED_NODES = ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert

NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.Is: ast.IsNot, ast.In: ast.NotIn
}  # fmt: skip
NEGATED |= {value: key for key, value in NEGATED.items()}
BORDERING: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.LtE: ast.Lt, ast.GtE: ast.Gt}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult
}  # fmt: skip
SYMMETRIC = {"torch.promote_types", "max", "min"}  # swapping their arguments changes nothing


class Edit(NamedTuple):
    kind: str
    old: ast.expr | ast.stmt  # what stands there
    new: ast.expr | ast.stmt  # what comes in its place
    note: str = ""  # where "old → new" would be long


def code_of(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below ``node`` that compute something."""
    if isinstance(node, SKIPPED_NODES) or _is_talk(node):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in SKIPPED_FIELDS:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from code_of(child)


def _is_talk(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="logger" | "warnings" | "logging"))):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False


def edits(node: ast.AST) -> Iterator[Edit]:
    match node:
        case ast.Call():
            yield from _edits_of_call(node)
        case ast.Compare(ops=[op]):
            for kind, table in (("negate a comparison", NEGATED), ("move a border", BORDERING)):
                if type(op) in table:
                    yield Edit(kind, node, _with(node, ops=[table[type(op)]()]))
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            yield Edit("change an operator", node, _with(node, op=ARITHMETIC[type(op)]()))
        case ast.BoolOp(op=op):
            yield Edit("and for or", node, _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And()))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            if not (isinstance(operand, ast.Constant) and operand.value == 1):  # -1 is the last of two, 1 as well
                yield Edit("drop a not or minus", node, operand)
        case ast.AugAssign():
            yield Edit("delete an assignment", node, ast.Pass())
        case ast.IfExp(test=test) | ast.If(test=test, orelse=[_, *_]):
            if not isinstance(test, ast.Compare | ast.UnaryOp):  # their negations are edits of their own
                yield Edit("swap branches", test, ast.UnaryOp(ast.Not(), test))
        case ast.Constant(value=value) if type(value) is int:
            for step in (1, -1):
                yield Edit("one off", node, ast.Constant(value + step))


def _edits_of_call(call: ast.Call) -> Iterator[Edit]:
    name = ast.unparse(call.func)
    for keyword in call.keywords:
        others = [other for other in call.keywords if other is not keyword]
        yield Edit("drop an argument", call, _with(call, keywords=others), f"{name}() without {ast.unparse(keyword)}")
    for i, argument in enumerate(call.args):
        written = ast.unparse(argument)
        if written.endswith("mask") or "bias" in written.rpartition(".")[2]:
            yield Edit("drop a mask or bias", argument, ast.Constant(None), f"{name}() with None for {written}")
        before = call.args[i - 1]  # of the first: the last
        starred = isinstance(before, ast.Starred) or isinstance(argument, ast.Starred)
        if i and not starred and name not in SYMMETRIC and ast.dump(before) != ast.dump(argument):
            swapped = [*call.args[: i - 1], argument, before, *call.args[i + 1 :]]
            note = f"{name}() with {written} before {ast.unparse(before)}"
            yield Edit("swap arguments", call, _with(call, args=swapped), note)


def _with(node: ast.expr, **fields: object) -> ast.expr:
    changed = copy.copy(node)
    vars(changed).update(fields)
    return changed


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every mutant of a file."""
    whole = source.encode()
    lines = whole.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]  # in bytes, as the tree's columns are
    found = []
    for kind, old, new, note in (edit for node in code_of(ast.parse(source)) for edit in edits(node)):
        begin = starts[old.lineno - 1] + old.col_offset
        end = starts[(old.end_lineno or 0) - 1] + (old.end_col_offset or 0)
        written = ast.unparse(new) if isinstance(new, ast.stmt | ast.Constant) else f"({ast.unparse(new)})"
        text = (whole[:begin] + written.encode() + whole[end:]).decode()
        name = f"line {old.lineno}: {note or f'{ast.unparse(old)} → {ast.unparse(new)}'}"
        found.append(Mutant(name, kind, file, text))
    return found


def generate(count: int, seed: int) -> list[Mutant]:
    """``count`` mutants: every file of modeling and the trainer in turn, and one of each other wing a round."""
    draw = random.Random(seed)
    folders = {wing: sorted((ROOT / wing).glob("[!_]*.py")) for wing in ("modeling", "configuration", "tokenization")}
    files = {wing: [path.relative_to(ROOT).as_posix() for path in paths] for wing, paths in folders.items()}
    files["modeling"].append("dragoman/trainer.py")
    names = [name for wing in files.values() for name in wing]
    pools = {name: _varied(mutants_of(name, (ROOT / name).read_text("utf-8")), draw) for name in names}
    chosen: list[Mutant] = []
    while len(chosen) < count and any(pools.values()):
        turn = [*files["modeling"], draw.choice(files["configuration"]), draw.choice(files["tokenization"])]
        draw.shuffle(turn)
        chosen += [pools[name].pop() for name in turn if pools[name]]
    return chosen[:count]


def _varied(mutants: list[Mutant], draw: random.Random) -> list[Mutant]:
    """In an order in which kinds take turns."""
    kinds = defaultdict(list)
    for mutant in draw.sample(mutants, len(mutants)):
        kinds[mutant.kind].append(mutant)
    ordered: list[Mutant] = []
    while any(kinds.values()):
        for kind in draw.sample(sorted(kinds), len(kinds)):
            if kinds[kind]:
                ordered.append(kinds[kind].pop())
    return ordered[::-1]
