# SPDX-License-Identifier: Apache-2.0
"""Small wrong changes of a module, one at a time, by its syntax tree: what a test has to notice."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
}  # fmt: skip
BOUNDS = {"min": "max", "max": "min"}
LOGS = ("LOG.", "self._log.", "self._sparing.", "log.")  # what is said to people is no behaviour
SMALL = 10  # a larger number is doubled: one more of it is seldom anybody's business


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong module. ``name`` says where and what, without line numbers: it holds while the code is the same."""

    name: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """All that there are of this source, in the order of its text."""
    names = _names(source)
    return [Mutant(name, _mutated(source, at)) for at, name in enumerate(names)]


def names(source: str) -> list[str]:
    """The names of all that there are, which is much quicker than to make them."""
    return _names(source)


def mutated(source: str, name: str) -> str:
    """The wrong source of that name; ValueError when there is none."""
    return _mutated(source, _names(source).index(name))


def _names(source: str) -> list[str]:
    mutator = _Mutator(-1)
    mutator.visit(ast.parse(source))
    seen: Counter[str] = Counter()
    unique = []
    for name in mutator.names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _mutated(source: str, at: int) -> str:
    return ast.unparse(ast.fix_missing_locations(_Mutator(at).visit(ast.parse(source))))


class _Mutator(ast.NodeTransformer):
    """Makes the change number ``at`` of those it comes by, and names all of them."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._scope: list[str] = []
        self.names: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return node  # it is for the type checker

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = node.value and self.visit(node.value)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._inside(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._inside(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) > 1:
            return node
        return self._or(node, ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators))

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        wrong = ARITHMETIC.get(type(node.op))
        return self._or(node, ast.BinOp(node.left, wrong(), node.right)) if wrong and not _is_text(node) else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        wrong = BOUNDS.get(node.func.id) if isinstance(node.func, ast.Name) else None
        return self._or(node, ast.Call(ast.Name(wrong), node.args, node.keywords)) if wrong else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node  # words for people

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        return self._or(node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return self._or(node, node.operand) if isinstance(node.op, ast.Not) else node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.test, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr):
            node.test = self._or(node.test, ast.UnaryOp(ast.Not(), node.test))
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool):
            return self._or(node, ast.Constant(not node.value))
        if isinstance(node.value, int | float):
            return self._or(node, ast.Constant(node.value + 1 if node.value < SMALL else node.value * 2))
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if not isinstance(node.value, ast.Call | ast.Await) or ast.unparse(node).startswith(LOGS):
            return node
        self.generic_visit(node)
        return self._or(node, ast.Pass())

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if not self._scope and isinstance(node.value, ast.Constant):
            return node  # a number with a name: tests speak of it by that
        self.generic_visit(node)
        lasting = all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
        return self._or(node, ast.Pass()) if lasting and "__init__" not in self._scope else node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        self.generic_visit(node)
        return self._or(node, ast.Pass())

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        return node if node.value else self._or(node, ast.Pass())

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        return self._or(node, ast.Pass())

    def _inside(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        """What is in its body, and its defaults; decorators and types are not what it does."""
        if all(isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) for each in node.body):
            return node  # it only declares what others do
        self._scope.append(node.name)
        if not isinstance(node, ast.ClassDef):
            node.args.defaults = [self.visit(each) for each in node.args.defaults]
            node.args.kw_defaults = [each and self.visit(each) for each in node.args.kw_defaults]
        node.body = [self.visit(each) for each in node.body]
        self._scope.pop()
        return node

    def _or(self, node: ast.expr | ast.stmt, wrong: ast.expr | ast.stmt) -> ast.AST:  # type: ignore[return]
        self.names.append(f"{'.'.join(self._scope)}: {_line(node)} -> {_line(wrong)}")
        return wrong if len(self.names) - 1 == self._at else node


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(each, ast.JoinedStr) or _is_string(each) for each in (node.left, node.right))


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)


def _line(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())
