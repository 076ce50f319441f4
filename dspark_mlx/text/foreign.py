"""Turns what other libraries raise for a user's input into an `InputError` of one line."""

from __future__ import annotations

from types import TracebackType

from huggingface_hub.errors import StrictDataclassError
from jinja2.exceptions import TemplateError

from ..errors import InputError

# What transformers, tokenizers, mlx-lm, llguidance and Jinja raise for files and texts that they
# cannot use. RuntimeError includes the RecursionError of deep nesting.
_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TemplateError,
    TypeError,
    ValueError,
)
_REASON = 200


class Refusing:
    """A context for one call of another library, whose exceptions become an `InputError`.

    It converts the exception types above, and what libraries written in Rust raise: `Exception`
    itself (tokenizers has no class of its own) and PyO3's PanicException. Other exceptions are bugs
    and pass, as Ctrl-C does. Only the call of the library belongs inside the block.

    Args:
        where, expected, hint: parts of the `InputError`.
        found: the beginning of its "found", before the library's reason in brackets.
    """

    def __init__(self, where: object, found: str, expected: str, hint: str = "") -> None:
        self._where, self._found, self._expected, self._hint = where, found, expected, hint

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or error is None or isinstance(error, InputError):
            return
        rust = kind is Exception or kind.__name__ == "PanicException"
        if rust or issubclass(kind, _REFUSALS):
            found = f"{self._found} ({reason(error)})"
            raise InputError(self._where, found, self._expected, self._hint) from error


def reason(error: BaseException) -> str:
    """An error's message in one line of at most 200 characters; with its type where that helps."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= _REASON else f"{text[: _REASON - 3]}..."
