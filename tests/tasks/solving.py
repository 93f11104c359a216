"""Recall by hand: the answer to a question, found in the tokens before it and nowhere else."""

import dataclasses

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX


def answer(prefix, width, alphabet):
    """What followed the asked key and its mark where they stood before, and how many tokens ago; there is one such."""
    *key, mark = prefix[-(width + 1) :]
    assert mark == alphabet.question_mark
    found = []
    for end in range(width, len(prefix) - 1):
        if prefix[end] in (alphabet.colon, alphabet.question_mark) and list(prefix[end - width : end]) == key:
            found.append((prefix[end + 1], len(prefix) - end - 1))
    assert len(found) == 1, "a key stood before once"
    return found[0]


def distances(task, width, alphabet):
    """From each question of each sequence back to the value, every answer checked."""
    every = []
    for tokens, asked in zip(task.tokens, task.asked, strict=True):
        found = [answer(tokens[:t], width, alphabet) for t in asked]
        assert [value for value, _ in found] == [tokens[t] for t in asked]
        assert {value for value, _ in found} <= set(alphabet.values)
        every.append([distance for _, distance in found])
    return every


def by_bars(checkpoint, text):
    """The checkpoint with a tokenizer whose tokens are what stands between bars, and three special ones around it.

    The bars and the spaces beside them are in no token.
    """
    words = {word.strip() for word in text.split("|")}
    tokenizer = Tokenizer(models.WordLevel({"[BEGIN]": 0, "[END]": 1, **{w: i for i, w in enumerate(words, start=2)}}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s*\|\s*"), behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BEGIN] $A [END] [END]", special_tokens=[("[BEGIN]", 0), ("[END]", 1)]
    )
    return dataclasses.replace(checkpoint, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def few_letters(checkpoint, text):
    """The checkpoint with a byte-level BPE of its own that has learnt this text."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text] * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return dataclasses.replace(checkpoint, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))
