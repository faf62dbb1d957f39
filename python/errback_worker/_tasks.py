"""Which functions are served, and under which names.

A module that was named at the start is served whole, unless it marks some of its functions: then only those. What a
task takes is looked up once; after that, a call costs two comparisons.
"""

from __future__ import annotations

from types import FunctionType, ModuleType
from typing import Any, Callable, Optional, TypeVar, Union, overload

_F = TypeVar("_F", bound=Callable[..., Any])

_ONLY_LISTS = frozenset((list,))

_marked: dict[str, Callable[..., Any]] = {}


class DuplicateTask(Exception):
    """Two functions are marked with one name."""


@overload
def task(function: _F) -> _F: ...


@overload
def task(*, name: Optional[str] = None) -> Callable[[_F], _F]: ...


def task(function: Optional[_F] = None, *, name: Optional[str] = None) -> Union[_F, Callable[[_F], _F]]:
    """Marks a function as a task. The function stays what it is.

    The task's name is ``module:function``, or what ``name`` says. A module that marks a function serves only those that
    it marks.

    ::

        @errback_worker.task
        def add(a, b):
            return a + b

        @errback_worker.task(name="sums.mean")
        def mean(numbers):
            return sum(numbers) / len(numbers)

    :raises DuplicateTask: another function has the name already.
    """

    def mark(function: _F) -> _F:
        given = name or f"{function.__module__}:{function.__qualname__}"
        if given.startswith("errback."):
            raise ValueError(f"the name {given!r}: those that begin with 'errback.' are not tasks'")
        there = _marked.get(given, function)
        if (there.__module__, there.__qualname__) != (function.__module__, function.__qualname__):
            raise DuplicateTask(f"two tasks have the name {given!r}: {_place(there)} and {_place(function)}")
        _marked[given] = function
        return function

    return mark if function is None else mark(function)


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


class UnknownTask(Exception):
    """There is no task of this name; the message says what there is."""


class Task:
    """A function, and how many arguments it takes."""

    __slots__ = ("function", "least", "most", "name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.least, self.most = _arity(function)

    def takes(self, args: Any) -> bool:
        """Whether the function can be called with these arguments, as far as their number says."""
        return type(args) is list and self.least <= len(args) <= self.most

    def takes_all(self, calls: list[Any]) -> bool:
        """The same for a chunk of calls, without a step of Python's own for each."""
        return _ONLY_LISTS.issuperset(map(type, calls)) and all(map(self.takes_count, set(map(len, calls))))

    def takes_count(self, count: int) -> bool:
        """Whether the function can be called with so many arguments."""
        return self.least <= count <= self.most

    def refusal(self, args: Any) -> str:
        """Why these arguments are not what it takes."""
        if type(args) is not list:
            return f"`{self.name}`: its arguments are no array"
        try:
            import inspect

            signature = inspect.signature(self.function)
        except BaseException:
            return f"`{self.name}` does not take {len(args)} arguments"
        try:
            signature.bind(*args)
        except TypeError as error:
            reason = str(error)
        else:
            reason = f"it does not take {len(args)} arguments"
        return f"`{self.name}{_written(signature)}`: {reason} ({len(args)} came)"


def _written(signature: object) -> str:
    # Defaults and annotations have a `repr` of their own.
    try:
        return str(signature)
    except BaseException:
        return "(...)"


def _arity(function: Callable[..., Any]) -> tuple[int, float]:
    """The least and the most arguments, all of them by position. ``inspect`` only where a glance is not enough."""
    if type(function) is FunctionType and not function.__dict__ and not function.__kwdefaults__:
        code = function.__code__
        if not code.co_kwonlyargcount:
            takes_any = code.co_flags & 0x04
            return code.co_argcount - len(function.__defaults__ or ()), float("inf") if takes_any else code.co_argcount
    try:
        import inspect

        parameters = inspect.signature(function).parameters.values()
    except BaseException:
        # Some that are written in C. They will say themselves what they do not take.
        return 0, float("inf")
    least, most = 0, 0.0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            most = float("inf")
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += parameter.default is parameter.empty
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            # There is no way to give it one.
            return 1, 0.0
    return least, most


class Table:
    """The tasks of this worker."""

    def __init__(self, modules: list[ModuleType]) -> None:
        self._modules = {module.__name__: module for module in modules}
        self._found: dict[str, Task] = {}

    def __len__(self) -> int:
        return len(self._names())

    def find(self, name: str) -> Task:
        """The task of this name."""
        try:
            return self._found[name]
        except KeyError:
            entry = self._found[name] = Task(name, self._look_up(name))
            return entry

    def _look_up(self, name: str) -> Callable[..., Any]:
        marked = _marked.get(name)
        if marked is not None:
            return marked
        module_name, _, path = name.partition(":")
        module = self._modules.get(module_name)
        if module is not None and path:
            if module_name in self._marking():
                raise self._unknown(name, f"module {module_name!r} marks its tasks, and this is none")
            value: Any = module
            for part in path.split("."):
                # A module that this one has imported is not served because of that.
                if part.startswith("_") or (value is not module and isinstance(value, ModuleType)):
                    value = None
                    break
                try:
                    value = getattr(value, part)
                except BaseException:
                    value = None
                    break
            if callable(value):
                function: Callable[..., Any] = value
                return function
            raise self._unknown(name)
        if path:
            raise self._unknown(name, f"module {module_name!r} was not given to this worker")
        raise self._unknown(name)

    def _unknown(self, name: str, why: str = "") -> UnknownTask:
        import difflib

        names = self._names()
        sentence = f"no task `{name[:200]}` among the {len(names)} of {', '.join(sorted(self._modules))}"
        if why:
            sentence += f": {why}"
        close = difflib.get_close_matches(name[:200], names, n=1, cutoff=0.5)
        if close:
            sentence += f"; did you mean `{close[0]}`?"
        return UnknownTask(sentence)

    def _marking(self) -> set[str]:
        return {function.__module__ for function in _marked.values()}

    def _names(self) -> list[str]:
        names = set(_marked)
        for module_name, module in self._modules.items():
            if module_name not in self._marking():
                names.update(
                    f"{module_name}:{name}"
                    for name, value in list(vars(module).items())
                    if not name.startswith("_") and callable(value)
                )
        return sorted(names)
