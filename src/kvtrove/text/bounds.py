"""What a chat template may cost: every loop, call and operation is counted, and no value grows past MAX_LENGTH.

The environment of `sandbox` rewrites a template so that its loops and joins pass through here, and is asked by Jinja
for operators, calls and filters. A `Budget` is spent; where it ends, BudgetError does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import TemplateSyntaxError
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import _PassArg

from kvtrove.text.budget import BudgetError, current

MAX_LENGTH = 32 * 2**20  # characters of a text, items of a list, and of what a template writes
MAX_NUMBER = 100_000  # of widths and counts
MAX_BITS = 4096  # of whole numbers that operators make
MAX_SOURCE, MAX_TAGS, MAX_PARENTHESES = 512 * 2**10, 5000, 60  # of a template: about ten times the largest known

_COUNTED, _JOINED = "counted by the budget", "joined within the budget"
_WRITERS = frozenset(
    [
        *("string", "tojson", "pprint", "join", "format", "escape", "e", "safe", "forceescape", "replace", "upper"),
        *("lower", "trim", "title", "capitalize", "indent", "center", "truncate", "wordwrap", "striptags", "urlize"),
    ]
)
_WIDE = re.compile(r"\d{6,}|\*")
_TAG = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_SIZED = (str, bytes, list, tuple)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox that counts."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, *, filters: Mapping[str, Callable[..., Any]], **settings: Any) -> None:
        """filters: beside Jinja's own, or instead of them."""
        super().__init__(**settings, optimized=False, finalize=_written)
        self.filters |= filters
        self.filters = {name: _bounded(name, function) for name, function in self.filters.items()}
        self.filters |= {_COUNTED: _counted, _JOINED: _joined}

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What Jinja joins outputs with."""
        budget, kept, length = current(), [], 0
        for part in parts:
            budget.spend(1, len(part))
            length += len(part)
            _check_length(length)
            kept.append(part)
        return "".join(kept)

    def _generate(self, source: nodes.Template, *more: Any, **named: Any) -> str:
        for loop in source.find_all(nodes.For):
            loop.iter = _filter(loop.iter, _COUNTED)
        return super()._generate(_without_joins(source), *more, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        current().spend()
        target = getattr(obj, "__self__", None)
        if isinstance(target, str):
            _check_text_method(obj.__name__, target, args, kwargs)
        elif getattr(obj, "__name__", "") == "generate_lorem_ipsum":
            _check_numbers(args, kwargs)
        return super().call(context, obj, *args, **kwargs)


def check_source(source: str) -> None:
    """TemplateSyntaxError for a template that would take long to compile."""
    if len(source) > MAX_SOURCE:
        raise TemplateSyntaxError(f"it has {len(source):,} characters, at most {MAX_SOURCE:,} are read", 1)
    tags = _TAG.findall(source)
    if len(tags) > MAX_TAGS:
        raise TemplateSyntaxError(f"it has {len(tags):,} tags, at most {MAX_TAGS:,} are read", 1)
    for tag in tags:
        depth = 0
        for character in tag[2:-2]:
            depth += (character in "([{") - (character in ")]}")
            if depth > MAX_PARENTHESES:
                raise TemplateSyntaxError(f"it nests more than {MAX_PARENTHESES} parentheses", 1)


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _without_joins(node: nodes.Node) -> Any:
    """`a ~ b` as a filter of a list: Jinja's own join cannot be asked how long it gets."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, name, [_without_joins(v) if isinstance(v, nodes.Node) else v for v in value])
        elif isinstance(value, nodes.Node):
            setattr(node, name, _without_joins(value))
    if isinstance(node, nodes.Concat):
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED)
    return node


# ---- filters ----


@pass_context
def _counted(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    budget = current()
    for value in values:
        budget.spend()
        yield value


@pass_context
def _joined(context: Context, values: list[Any]) -> str:
    texts = [str(_written(value)) for value in values]
    _check_length(sum(map(len, texts)), made=True)
    return "".join(texts)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with its arguments checked. It gets the context, so that Jinja never runs it while compiling."""
    passes = _PassArg.from_obj(function)

    @pass_context
    def checked(context: Context, *args: Any, **kwargs: Any) -> Any:
        current().spend()
        _check_numbers(args[1:], kwargs)
        if name in _WRITERS:
            for value in (*args, *kwargs.values()):
                _measure(value)
        if name in ("replace", "join", "format") and args:
            _check_text_method(name, *_as_method(name, args, kwargs))
        given = {
            _PassArg.context: (context,),
            _PassArg.eval_context: (context.eval_ctx,),
            _PassArg.environment: (context.environment,),
        }
        return function(*(given[passes] if passes is not None else ()), *args, **kwargs)

    return checked


def _as_method(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A filter's arguments as those of the method of a text that does the same."""
    if name == "join":
        values = args[0] if isinstance(args[0], _SIZED) else ()
        return str(args[1] if len(args) > 1 else kwargs.get("d", "")), (values,), {}
    return str(args[0]), args[1:], kwargs


# ---- how large would it be? ----


def _check_length(length: int, made: bool = False) -> None:
    if length > MAX_LENGTH:
        raise BudgetError(f"it makes a value of more than {MAX_LENGTH:,} characters or items")
    if made:
        current().spend(1, length)


def _check_numbers(args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise BudgetError(f"it asks for {value:.3g} characters or items at once; at most {MAX_NUMBER:,} are given")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    current().spend()
    if operator == "%" and isinstance(left, str):
        _check_format(left)
        _measure(right)
    elif operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
        _check_length(len(left) + len(right), made=True)
    elif operator == "*":
        for sized, number in ((left, right), (right, left)):
            if isinstance(sized, _SIZED) and isinstance(number, int):
                _check_length(len(sized) * max(0, number), made=True)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(1, right) if operator == "**" else left.bit_length() + right.bit_length()
        if operator in ("*", "**") and bits > MAX_BITS:
            raise BudgetError(f"it computes a number of more than {MAX_BITS} bits")


def _check_text_method(name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if name in ("ljust", "rjust", "center", "zfill", "expandtabs"):
        _check_numbers(args, kwargs)
    if name == "expandtabs":
        _check_length(len(text) + text.count("\t") * MAX_NUMBER, made=True)
    elif name in ("format", "format_map"):
        _check_format(text)
        for value in (*args, *kwargs.values()):
            _measure(value)
    elif name == "replace" and len(args) >= 2 and all(isinstance(a, str) for a in args[:2]):
        old, new = args[:2]
        _check_length(len(text) + (text.count(old) if old else len(text) + 1) * len(new), made=True)
    elif name == "join" and args and isinstance(args[0], (list, tuple)):
        _check_length(sum(len(a) for a in args[0] if isinstance(a, str)) + len(text) * len(args[0]), made=True)
    else:
        current().spend(1, len(text))


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise BudgetError("it formats with a width of more than five digits, or one that is an argument")


def _measure(value: Any) -> None:
    """Spend what writing a value costs: lists of lists of the same list are small in memory and endless on paper."""
    if isinstance(value, str):
        current().spend(1, len(value))
        return
    budget, stack, length = current(), [value], 0
    while stack:
        item = stack.pop()
        size = len(item) if isinstance(item, str) else 1
        length += size
        budget.spend(1, size)
        _check_length(length)
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            stack += item


def _written(value: Any) -> Any:
    """A value that is about to be written."""
    if isinstance(value, (list, tuple, dict)) and not isinstance(value, Undefined):
        _measure(value)
    return value
