"""Classes of tokens: by whether the token occurred earlier in the text, and by the word that it is part of."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.tasks.arguments import list_of_texts, whole
from qwenlab.tasks.encoding import Encoded, encoded

CLASSES = {
    "repeated": "ends an n-gram that occurred earlier in the text",
    "first": "occurs in the text for the first time",
    "associative": "follows its predecessor as it did earlier in the text",
    "content": "is part of a word that is not a function word",
    "function": "is part of an English function word",
}
"""The classes, and what is true of their tokens. They overlap, and a token can be in none."""

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
"""A closed list of English function words in lower case: determiners, pronouns, prepositions, conjunctions,
auxiliaries, frequent adverbs, and contractions of these."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def token_classes(
    checkpoint: Checkpoint, text: str, *, n: int = 3, max_tokens: int | None = 512
) -> dict[str, np.ndarray]:
    """The classes of every token of a text: bool [token] by the names of `CLASSES`.

    repeated     the n tokens that end with it, x[t-n+1..t], occurred earlier in the sequence
    first        x[t] does not occur in x[..t-1]
    associative  the bigram (x[t-1], x[t]) occurred earlier in the sequence: an associative-recall hit as in Zoology
                 (Arora et al. 2023, arXiv:2312.04927), without its filter by frequency in the training data
    content      it is part of a word that is not a function word
    function     it is part of a word of `FUNCTION_WORDS`, in upper or lower case

    A word is a run of letters with the apostrophes inside it. A token is part of the last word that it shares a
    character with, if any. So in code `for` is a function word, and `is_valid` has two words. A sequence is the text
    after it was cut to `max_tokens`. Raises BadArgument.
    """
    list_of_texts("token_classes", [text])
    return classes_of(encoded(checkpoint, text, max_tokens), n)


def classes_of(text: Encoded, n: int) -> dict[str, np.ndarray]:
    """The classes of the tokens of an encoded text: bool [token] by name."""
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
    """Whether the n tokens up to each one occurred earlier: bool [token]; False for the first n - 1."""
    before: set[tuple[int, ...]] = set()
    found = np.zeros(len(tokens), dtype=bool)
    for end in range(n, len(tokens) + 1):
        gram = tuple(tokens[end - n : end])
        found[end - 1] = gram in before
        before.add(gram)
    return found


def _words(text: str, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each token is part of a content word, and whether of a function word: bool [token] each."""
    kind = np.zeros(len(text), dtype=np.int8)  # by character: 1 in a content word, 2 in a function word
    for word in _WORD.finditer(text):
        kind[slice(*word.span())] = 2 if word[0].lower().replace("’", "'") in FUNCTION_WORDS else 1
    of_token = np.zeros(len(spans), dtype=np.int8)
    for index, (begin, end) in enumerate(spans):
        inside = kind[begin:end][kind[begin:end] > 0]
        of_token[index] = inside[-1] if len(inside) else 0
    return of_token == 1, of_token == 2
