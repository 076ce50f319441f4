"""The longest end of a text that occurs earlier in it, kept up to date token by token.

The structure is a suffix automaton (Blumer et al. 1985, "The smallest automaton recognizing the
subwords of a text"). A state stands for all substrings that end at the same positions. The link of
the whole text's state is the state of the longest end that occurs elsewhere too. A token costs
constant time on average, however long the text and the match are.
"""

from __future__ import annotations

from collections.abc import Iterable


class SuffixIndex:
    """A growing text of token ids and the longest end of it that occurs earlier.

    Attributes:
        match: length of the longest end that also ends at an earlier position; 0 for none.
        source: place in the text of the token after that earlier occurrence; of no use without one.
    """

    def __init__(self) -> None:
        self.match = self.source = 0
        self._text: list[int] = []
        # By state; state 0 is the empty string's. A state's place is where one of its strings ends.
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length, self._place = [-1], [0], [0]
        self._whole = 0
        self._walls = 0

    def wall(self) -> None:
        """End a text, so that no match and no copy goes on from it into the next one."""
        self._walls += 1
        # Token ids are not negative, and each wall is another one.
        self.extend([-self._walls])

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self._append(token)
        link = max(self._link[self._whole], 0)
        self.match, self.source = self._length[link], self._place[link]
        # Of equal matches the newest is copied the next time.
        self._place[link] = len(self._text)

    def continuation(self, length: int) -> list[int]:
        """Up to `length` tokens that follow the match's earlier occurrence; none without a match.

        Where the text ends before that, it goes on as it did from `source` on: a repetition.
        """
        if not self.match:
            return []
        copied = self._text[self.source : self.source + length]
        period = len(self._text) - self.source
        while len(copied) < length:
            copied.append(copied[len(copied) - period])
        for i, token in enumerate(copied):
            if token < 0:
                return copied[:i]
        return copied

    def _append(self, token: int) -> None:
        nexts, links, lengths = self._next, self._link, self._length
        self._text.append(token)
        new, state = len(nexts), self._whole
        nexts.append({})
        lengths.append(lengths[state] + 1)
        links.append(0)
        self._place.append(len(self._text))
        self._whole = new
        while state >= 0 and token not in nexts[state]:
            nexts[state][token] = new
            state = links[state]
        if state >= 0:
            found = nexts[state][token]
            if lengths[found] != lengths[state] + 1:
                found = self._split(found, state, token)
            links[new] = found

    def _split(self, found: int, state: int, token: int) -> int:
        """A state for those strings of `found` that are no longer than `state`'s and a token."""
        nexts, links = self._next, self._link
        part = len(nexts)
        nexts.append(dict(nexts[found]))
        self._length.append(self._length[state] + 1)
        links.append(links[found])
        self._place.append(self._place[found])
        links[found] = part
        while state >= 0 and nexts[state].get(token) == found:
            nexts[state][token] = part
            state = links[state]
        return part
