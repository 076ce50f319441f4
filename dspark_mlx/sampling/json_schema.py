"""Structured output: a logits processor that allows only tokens of a JSON schema's grammar.

llguidance follows the grammar. This module adds what speculation needs: the processor's result
depends only on the tokens of the current call, so that rejected drafts leave no trace.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..text.foreign import Refusing

_REMEMBERED = 64
_TOKENS: WeakKeyDictionary[Any, dict[tuple[int, tuple[int, ...]], Any]] = WeakKeyDictionary()
_ADVICE = (
    (
        "oneOf",
        'Use anyOf, or give each alternative "additionalProperties": false and names that it '
        "requires and the others lack.",
    ),
    ("unevaluatedProperties", 'Use "additionalProperties": false.'),
    ("required property", 'Under "additionalProperties": false each must stand in properties.'),
)
"""What helps where llguidance complains of objects that are open, by words of the complaint."""
# Where a complaint of llguidance goes on with its own state, or with a listing of the grammar.
_BEYOND = re.compile(r"<(?:backtrace|state)>|^ *\d+ \| ", re.MULTILINE)


class Grammar:
    """A grammar to be given to a request as one of its `logits_processors`.

    Args:
        where: names it in errors.
        write: makes llguidance's grammar, given its class of matchers.
        tokenizer: a fast Hugging Face tokenizer.
        vocabulary: size of the target's vocabulary, at least the tokenizer's.
        stop_tokens: ids that may end the text once it is valid.

    Raises:
        InputError: llguidance is not installed, there are no stop tokens, the tokenizer is not a
            fast one, or llguidance does not support the grammar.
    """

    def __init__(
        self,
        where: str,
        write: Callable[[Any], str],
        tokenizer: Any,
        vocabulary: int,
        stop_tokens: Collection[int],
    ) -> None:
        try:
            import llguidance
        except ImportError as error:
            hint = 'pip install ".[grammar]", in a clone of the project'
            raise InputError(where, "no llguidance", "this package", hint) from error
        if not stop_tokens:
            raise InputError(where, "a target without end tokens", "end tokens")
        try:
            tokens = _tokens_of(tokenizer, vocabulary, tuple(sorted(stop_tokens)))
        except ValueError as error:
            raise InputError(where, str(error), "a fast tokenizer") from error
        try:
            grammar = write(llguidance.LLMatcher)
        except (TypeError, ValueError) as error:
            raise InputError(where, str(error), "a JSON schema") from error
        # llguidance can panic on what it wants to complain of.
        with Refusing(where, "a schema that llguidance cannot read", "a JSON schema"):
            problem = llguidance.LLMatcher.validate_grammar(grammar, tokens)
            # Made here: in the thread that decodes, other requests would wait for a large schema.
            self._matcher = llguidance.LLMatcher(tokens, grammar)
        problem = _said(problem) or _error_of(self._matcher)
        if problem:
            advice = next((advice for words, advice in _ADVICE if words in problem), "")
            raise InputError(where, problem, "a schema that llguidance supports", advice)
        self._vocabulary = vocabulary
        self._stops = frozenset(stop_tokens)
        self._where = where

    def start(self, prompt_tokens: int) -> SchemaProcessor:
        """A new request's processor, for a prompt of `prompt_tokens` tokens."""
        matcher = self._matcher.deep_copy()
        return SchemaProcessor(matcher, prompt_tokens, self._vocabulary, self._stops, self._where)


class JsonSchema(Grammar):
    """A JSON schema that a text follows.

    Args:
        schema: a JSON schema.
        tokenizer, vocabulary, stop_tokens: see `Grammar`.

    Raises:
        InputError: see `Grammar`; or the schema is no object.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        tokenizer: Any,
        vocabulary: int,
        stop_tokens: Collection[int],
    ) -> None:
        def write(matcher: Any) -> str:
            # Free whitespace would let a text go on without end.
            overrides = {"whitespace_flexible": False}
            grammar: str = matcher.grammar_from_json_schema(json.dumps(schema), overrides=overrides)
            return grammar

        if not isinstance(schema, Mapping):
            raise InputError("JSON schema", type(schema).__name__, "an object")
        super().__init__("JSON schema", write, tokenizer, vocabulary, stop_tokens)


class SchemaProcessor:
    """One request's logits processor for a grammar.

    Args:
        matcher: an `llguidance.LLMatcher` that has taken no tokens yet.
        prompt_tokens: number of prompt tokens, which the grammar does not apply to.
        vocabulary: columns of the logits.
        stops: ids that end the text.
        where: names the grammar in errors.
    """

    def __init__(
        self,
        matcher: Any,
        prompt_tokens: int,
        vocabulary: int,
        stops: frozenset[int],
        where: str = "JSON schema",
    ) -> None:
        self._matcher = matcher
        self._prompt = prompt_tokens
        self._vocabulary = vocabulary
        self._stops = stops
        self._where = where
        self._text: list[int] = []
        self._masks: dict[tuple[int, ...], mx.array | None] = {}

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Logits with -inf for each token that the grammar forbids; reads `tokens` to the host."""
        text = tuple(np.array(tokens[self._prompt :]).tolist())
        if text not in self._masks:
            while len(self._masks) >= _REMEMBERED:
                self._masks.pop(next(iter(self._masks)))
            self._masks[text] = self._mask(list(text))
        mask = self._masks[text]
        return logits if mask is None else mx.where(mask, logits, -mx.inf)

    def _mask(self, text: list[int]) -> mx.array | None:
        """Allowed next tokens, bool `[vocabulary]`; None for a text that is over or not allowed."""
        same = 0
        for old, new in zip(self._text, text, strict=False):
            if old != new:
                break
            same += 1
        self._matcher.rollback(len(self._text) - same)
        added = text[same:]
        # A matcher cannot go on after a forbidden token, so it takes only the tokens before it.
        valid = self._matcher.validate_tokens(added)
        self._matcher.consume_tokens(added[:valid])
        self._text = text[: same + valid]
        if error := _error_of(self._matcher):
            raise InputError(self._where, error, "a grammar that llguidance can follow")
        if valid < len(added) or not self._stops.isdisjoint(text):
            return None
        allowed = np.zeros(self._vocabulary, dtype=bool)
        if self._matcher.is_stopped():
            allowed[list(self._stops)] = True
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            allowed[:] = np.unpackbits(bits, count=self._vocabulary, bitorder="little")
        return mx.array(allowed)


def _tokens_of(tokenizer: Any, vocabulary: int, stops: tuple[int, ...]) -> Any:
    """llguidance's tokenizer, which takes half a second to make; one serves many grammars.

    Raises:
        ValueError: the tokenizer is not a fast one.
    """
    import llguidance.hf

    made = _TOKENS.setdefault(tokenizer, {})
    if (vocabulary, stops) not in made:
        made[vocabulary, stops] = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=vocabulary, eos_token=list(stops)
        )
    return made[vocabulary, stops]


def _error_of(matcher: Any) -> str:
    """What a matcher complains of; "" for nothing."""
    return _said(matcher.get_error()) if matcher.is_error() else ""


def _said(complaint: str) -> str:
    """A complaint of llguidance in one line."""
    lines = _BEYOND.split(complaint)[0].splitlines()
    return " ".join(line.strip() for line in lines if line.strip(" ^"))
