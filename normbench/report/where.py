"""``--where 'norm in [bn, gn] and batch <= 64'``: a filter on runs, parsed but never executed.

A filter uses Python's expression syntax. It is parsed by :mod:`ast` and evaluated here for a closed
list of forms: comparisons, ``in``, ``and``, ``or``, ``not``, parentheses and lists. The left side
of a comparison is a column of the runs frame. The right side is a number, a quoted string,
``true``, ``false``, ``none`` (a missing value, unless the column contains that string), another
numeric column, or a bare name, which is read as a string. :func:`select` applies a filter.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from normbench.errors import UserError, nearest, unknown

LONGEST = 2000
"""Maximum length of a filter; deeper nesting would exhaust Python's parser."""

_COMMIT = 7  # minimum number of digits that abbreviate a commit, as in git

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_HINT = 'write e.g. "norm in [bn, gn] and batch <= 64"'


@dataclass
class Filter:
    """The result of a filter.

    Attributes:
        mask: A boolean for each row of the runs frame.
        notes: A sentence for each value in the filter that no run has, suggesting the nearest.
    """

    mask: pd.Series
    notes: list[str] = field(default_factory=list)


def select(text: str, runs: pd.DataFrame) -> Filter:
    """Apply a filter to the runs frame.

    Raises:
        UserError: The filter cannot be parsed, names an unknown column, compares a string with a
            number, or matches no run because a value in it does not exist.
    """
    walker = _Walker(text, runs)
    mask = walker.boolean(parse(text))
    if walker.notes and not mask.any():
        raise UserError(f"--where {text!r} matches no run: {'; '.join(walker.notes)}")
    return Filter(mask, walker.notes)


def parse(text: str) -> ast.expr:
    """Return the syntax tree of a filter.

    Raises:
        UserError: The text is empty, too long or not an expression.
    """
    if not text.strip():
        raise UserError(f"--where is empty: {_HINT}, or leave it out")
    if len(text) > LONGEST:
        raise UserError(f"--where is longer than {LONGEST} characters")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        if re.search(r"(?<![=!<>])=(?!=)", text):
            reason = "equality is written =="
        raise UserError(f"cannot read --where {text!r}: {reason}; {_HINT}") from None


class _Walker:
    def __init__(self, text: str, runs: pd.DataFrame) -> None:
        self.text = text
        self.runs = runs
        self.notes: list[str] = []

    def boolean(self, node: ast.expr) -> pd.Series:
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            mask = self.boolean(node.values[0])
            for value in node.values[1:]:
                mask = join(mask, self.boolean(value))
            return mask
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.boolean(node.operand)
        if isinstance(node, ast.Compare):
            return self._chain(node)
        if isinstance(node, ast.Name | ast.Attribute):
            column = self.runs[self._column(node)]
            if column.dtype in (bool, "boolean"):
                return column.fillna(False).astype(bool)
        raise self._refuse(node, "is not a comparison")

    def _chain(self, node: ast.Compare) -> pd.Series:
        """Evaluate ``16 <= batch < 64`` as Python does, each pair in turn."""
        mask = pd.Series(True, index=self.runs.index)
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            mask &= self._pair(left, op, right)
            left = right
        return mask

    def _pair(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pd.Series:
        if not isinstance(left, ast.Name | ast.Attribute):
            turned_op = _turned(op)
            if turned_op is None or not isinstance(right, ast.Name | ast.Attribute):
                raise self._refuse(left, "is not a column")
            left, op, right = right, turned_op, left
        name = self._column(left)
        column = self.runs[name]
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple | ast.Set):
                raise self._refuse(right, "is not a list such as [bn, gn]")
            values = [self._value(item, name) for item in right.elts]
            mask = pd.Series(False, index=self.runs.index)
            for value in values:
                mask |= self._equal(name, value)
            return mask if isinstance(op, ast.In) else ~mask
        if type(op) not in _COMPARE:
            raise UserError(f"cannot read --where {self.text!r}: use ==, !=, <, <=, >, >=, in")
        value = self._value(right, name)
        if isinstance(op, ast.Eq | ast.NotEq):
            mask = self._equal(name, value)
            return mask if isinstance(op, ast.Eq) else ~mask
        if not pd.api.types.is_numeric_dtype(column) or column.dtype in (bool, "boolean"):
            raise UserError(f"--where: {name!r} is not a number and has no order; use == or in")
        if isinstance(value, str) or value is None:
            raise UserError(f"--where: {name!r} is a number and cannot be compared to {value!r}")
        return _COMPARE[type(op)](column, value).fillna(False).astype(bool)

    def _equal(self, name: str, value: Any) -> pd.Series:
        column = self.runs[name]
        if isinstance(value, pd.Series):
            return (column == value).fillna(False).astype(bool)
        if value is None:
            return column.isna()
        numeric = pd.api.types.is_numeric_dtype(column) and column.dtype not in (bool, "boolean")
        if numeric and isinstance(value, str):
            raise UserError(f"--where: {name!r} is a number and cannot be compared to {value!r}")
        if not numeric and column.dtype not in (bool, "boolean"):
            value = str(value)
            if name == "commit" and len(value) >= _COMMIT:
                column = column.where(~column.str.startswith(value).fillna(False), value)
            column_values = column.dropna().unique()
            if value not in column_values:
                close = nearest(value, column_values)
                hint = f" (did you mean {close!r}?)" if close else ""
                self.notes.append(f"no run has {name} {value!r}{hint}")
        return (column == value).fillna(False).astype(bool)

    def _column(self, node: ast.Name | ast.Attribute) -> str:
        name = _dotted(node)
        if name is None:
            raise self._refuse(node, "is not a column")
        if name in self.runs.columns:
            return name
        if name in ("tag", "tags"):
            raise self._refuse(node, "is not a column: a tag is written tag.NAME, as in tag.paper")
        if name.startswith("tag."):
            tags = [c.removeprefix("tag.") for c in self.runs.columns if c.startswith("tag.")]
            raise unknown("tag in --where", name.removeprefix("tag."), tags)
        raise unknown("column in --where", name, self.runs.columns)

    def _value(self, node: ast.expr, column: str) -> Any:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._value(node.operand, column)
            if isinstance(value, int | float):
                return -value
            raise self._refuse(node, "is not a number")
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str | int | float | bool) or node.value is None:
                return self._text_of(column, node) if node.value is None else node.value
            raise self._refuse(node, "is neither a number nor text")
        name = _dotted(node) if isinstance(node, ast.Name | ast.Attribute) else None
        if name is None:
            raise self._refuse(node, "is not a value (quote text with special characters)")
        if name.lower() in ("true", "false"):
            return name.lower() == "true"
        if name.lower() in ("none", "null"):
            return self._text_of(column, node)
        other_column = self.runs[name] if name in self.runs.columns else None
        numbers = pd.api.types.is_numeric_dtype
        if other_column is not None and numbers(other_column) and numbers(self.runs[column]):
            return other_column
        return name

    def _text_of(self, column: str, node: ast.expr) -> str | None:
        """Read ``none``: a string if the column may contain it (``norm``), else a missing value."""
        text = ast.unparse(node).lower()
        return text if column == "norm" or (self.runs[column] == text).any() else None

    def _refuse(self, node: ast.expr, reason: str) -> UserError:
        part = ast.get_source_segment(self.text.strip(), node) or ast.unparse(node)
        return UserError(f"cannot read --where {self.text!r}: {part!r} {reason}; {_HINT}")


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        prefix = _dotted(node.value)
        return None if prefix is None else f"{prefix}.{node.attr}"
    return None


def _turned(op: ast.cmpop) -> ast.cmpop | None:
    """Return the operator that means the same with both sides swapped."""
    pairs = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
    if isinstance(op, ast.Eq | ast.NotEq):
        return op
    return pairs[type(op)]() if type(op) in pairs else None
