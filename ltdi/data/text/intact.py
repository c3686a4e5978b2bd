"""A task that any texts make, without a label: is a text as it was written?

Half of the texts are damaged in one place: two neighbouring words change places, a word is left
out, or another takes its place. Telling them from the others asks for the order of words and for
what fits where, which embeddings of sentences lose (Conneau et al., 2018, section 2, bigram shift
and semantic odd man out).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ltdi.data.text.textset import Text, TextSet
from ltdi.errors import InputError

DESCRIPTION = "Is the text as it was written?"
# Words of a text: in shorter ones a damage is often none, longer ones are cut by an encoder.
SHORTEST, LONGEST = 5, 30
_TRIES = 20


def intact(name: str, texts: Sequence[Text], *, seed: int = 0) -> TextSet:
    """Texts of which every other one is damaged, in random order; class 1 is intact.

    The texts of a pair are taken one by one, each once.

    Raises:
        InputError: If fewer than two texts have `SHORTEST` to `LONGEST` words.
    """
    found = dict.fromkeys(
        tuple(part.split()) for pair in texts for part in pair if part is not None
    )
    some = [words for words in found if SHORTEST <= len(words) <= LONGEST]
    if len(some) < 2:
        raise InputError(
            f"{len(some)} of {len(found)} different texts have {SHORTEST} to {LONGEST} words",
            where=f"text task {name!r}",
            fix="give two such texts or more, of words with spaces between them",
        )
    rng = torch.Generator().manual_seed(seed)
    words = [word for text in some for word in text]
    rows: list[Text] = []
    for number, i in enumerate(torch.randperm(len(some), generator=rng).tolist()):
        text = some[i] if number % 2 else _damaged(some[i], words, rng)
        rows.append((" ".join(text), None))
    return TextSet(
        name, tuple(rows), torch.arange(len(rows)) % 2, ("damaged", "intact"), ("accuracy",)
    )


def _damaged(text: Sequence[str], words: Sequence[str], rng: torch.Generator) -> Sequence[str]:
    """The text with two words exchanged, one left out, or one replaced by one of `words`."""

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=rng))

    kind, i = below(3), below(len(text) - 1)
    if kind == 0:
        # Where a word stands twice in a row, another place is looked for.
        for _ in range(_TRIES):
            if text[i] != text[i + 1]:
                return [*text[:i], text[i + 1], text[i], *text[i + 2 :]]
            i = below(len(text) - 1)
    if kind == 2:
        for _ in range(_TRIES):
            other = words[below(len(words))]
            if other != text[i]:
                return [*text[:i], other, *text[i + 1 :]]
    return [*text[:i], *text[i + 1 :]]
