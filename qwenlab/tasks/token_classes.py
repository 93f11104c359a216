"""Classes of tokens: what the text before a token has already shown of it, and the word that it lies in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwenlab.tasks.arguments import several, whole
from qwenlab.tasks.encoding import Encoded, encoded

CLASSES = {
    "repeated": "ends an n-gram that stood in the text before",
    "first": "stands in the text for the first time",
    "associative": "follows its predecessor as it did before in the text",
    "content": "lies in a word that is no function word",
    "function": "lies in an English function word",
}
"""The classes and what a token of each does. They overlap, and a token can be in none."""

_FUNCTION_WORDS = """
a an the this that these those each every either neither some any no all both such another other

i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves who whom whose which what whoever whatever whichever thou thee thy thine
thyself ye one somebody someone something anybody anyone anything nobody none nothing everybody everyone everything

of in to for with on at by from up about into over after beneath under above below between among through during before
behind beside besides beyond against across along around without within upon toward towards until till since unto off
out near per than as like

and or but nor so yet if because although though while whereas unless whether lest

am is are was were be been being have has had having do does did doing done will would shall should can could may might
must ought hath hast doth dost art wast wert wilt shalt canst

not there here then when where why how thus hence therefore also too very just only even now never ever again

isn't aren't wasn't weren't haven't hasn't hadn't don't doesn't didn't won't wouldn't shan't shouldn't can't cannot
couldn't mightn't mustn't i'm i've i'll i'd you're you've you'll you'd he's he'll he'd she's she'll she'd it's it'll
we're we've we'll we'd they're they've they'll they'd that's there's who's what's let's
"""

FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""A closed list of English function words, in small letters: determiners, pronouns, prepositions, conjunctions,
auxiliaries, the commonest adverbs without a meaning of their own, and what these are contracted to."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def token_classes(checkpoint: Any, text: str, *, n: int = 3, max_tokens: int | None = 512) -> dict[str, np.ndarray]:
    """Which of a text's tokens are in which class: bool [token] by the names of `CLASSES`.

    repeated     the n tokens that end with it, x[t-n+1..t], stood somewhere before in the sequence
    first        x[t] is nowhere in x[..t-1]
    associative  the bigram (x[t-1], x[t]) stood before in the sequence: an associative-recall hit in the sense of
                 Zoology (Arora et al. 2023, arXiv:2312.04927), which also leaves out what was frequent in training.
                 What a checkpoint was trained on is not known here, so that some of these can be known by heart
    content      it lies in a word, and that is no function word
    function     it lies in a word of `FUNCTION_WORDS`, in large or small letters

    A word is a run of letters with the apostrophes inside it; a token lies in the last word that it has a character of,
    if it has one of any. So in code `for` is a function word, and `is_valid` has two words. A sequence is the
    text after it was cut to `max_tokens`. Raises BadArgument.
    """
    several("token_classes", [text])
    return classes_of(encoded(checkpoint, text, max_tokens), n)


def classes_of(text: Encoded, n: int) -> dict[str, np.ndarray]:
    """The classes of an encoded text's tokens: bool [token] by name."""
    whole("token_classes", n=n)
    content, function = _words(text.text, text.spans)
    return {
        "repeated": _seen(text.tokens, n),
        "first": ~_seen(text.tokens, 1),
        "associative": _seen(text.tokens, 2),
        "content": content,
        "function": function,
    }


def _seen(tokens: Sequence[int], n: int) -> np.ndarray:
    """Whether the n tokens up to each one stood before: bool [token]; False where there are no n."""
    before: set[tuple[int, ...]] = set()
    found = np.zeros(len(tokens), dtype=bool)
    for end in range(n, len(tokens) + 1):
        gram = tuple(tokens[end - n : end])
        found[end - 1] = gram in before
        before.add(gram)
    return found


def _words(text: str, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each token lies in a content word, and whether in a function word: bool [token] each."""
    kind = np.zeros(len(text), dtype=np.int8)  # of the word that a character is of; 0 of none
    for word in _WORD.finditer(text):
        kind[slice(*word.span())] = 2 if word[0].lower().replace("’", "'") in FUNCTION_WORDS else 1
    of_token = np.zeros(len(spans), dtype=np.int8)
    for index, (begin, end) in enumerate(spans):
        inside = kind[begin:end][kind[begin:end] > 0]
        of_token[index] = inside[-1] if len(inside) else 0
    return of_token == 1, of_token == 2
