"""The chances that copied tokens survive, by the length of the match that they follow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter

# From each length of a match on: the chance that the next token is copied rightly, before anything
# is known of a request. Long matches come from texts that are repeated, short ones from chance.
_PRIOR = (
    (1, 0.2),
    (2, 0.4),
    (3, 0.55),
    (4, 0.7),
    (6, 0.8),
    (9, 0.88),
    (14, 0.93),
    (22, 0.96),
    (40, 0.98),
)
_LONGEST = _PRIOR[-1][0]
# By length of a match, up to the longest that is told apart: its place in the table.
_KINDS = [bisect_right(_PRIOR, length, key=itemgetter(0)) - 1 for length in range(_LONGEST + 1)]
# Tokens that the prior counts for, and what an older token counts for beside the next newer one.
_PRIOR_TOKENS = 4.0
_KEPT = 0.97
# Survival below this is nothing to verify for, and is not computed.
_FAINT = 0.01


class CopyChances:
    """One request's chances that copied tokens survive: a Beta distribution for matches of a kind.

    A copied token that survives makes the match one token longer. So a copy's later tokens follow
    longer matches, and are surer than its first.
    """

    def __init__(self) -> None:
        self._survived = [chance * _PRIOR_TOKENS for _, chance in _PRIOR]
        self._judged = [_PRIOR_TOKENS for _ in _PRIOR]

    def survival(self, match: int, length: int) -> list[float]:
        """The chances that a copy's first k tokens all survive, for each k that is likely enough.

        Args:
            match: length of the match that the copy follows, at least 1.
            length: tokens of the copy.
        """
        survived, judged = self._survived, self._judged
        product, survival = 1.0, []
        for longer in range(match, match + length):
            kind = _KINDS[min(longer, _LONGEST)]
            product *= survived[kind] / judged[kind]
            if product < _FAINT:
                break
            survival.append(product)
        return survival

    def learn(self, match: int, copy: Sequence[int], committed: Sequence[int]) -> None:
        """Update with what the target said where the copy would have stood, verified or not.

        Committed tokens have the target's distribution, whoever proposed them, so each shows
        whether a copied token would have survived.

        Args:
            match: length of the match that the copy follows; 0 for no copy.
            copy: the copied tokens.
            committed: tokens that the round committed.
        """
        for i, (copied, token) in enumerate(zip(copy, committed, strict=False)):
            kind = _KINDS[min(match + i, _LONGEST)]
            prior = _PRIOR[kind][1] * _PRIOR_TOKENS
            # What was learned ages; the prior does not.
            survived = _KEPT * (self._survived[kind] - prior)
            judged = _KEPT * (self._judged[kind] - _PRIOR_TOKENS)
            self._survived[kind] = prior + survived + (copied == token)
            self._judged[kind] = _PRIOR_TOKENS + judged + 1
            if copied != token:
                return
