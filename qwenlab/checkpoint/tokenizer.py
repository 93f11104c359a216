"""The tokenizer of a checkpoint, held to its vocabulary."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwenlab.errors import TokenizerMisfit

# Any one of these sets of files; with none of them transformers builds an empty tokenizer without a word.
_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def load_tokenizer(folder: Path, rows: int) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; `rows` is the number of rows of the embedding, and no token id may reach it.

    Raises TokenizerMisfit.
    """
    if not any(all((folder / file).is_file() for file in files) for files in _FILES):
        raise TokenizerMisfit(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt.\n"
            "Fetch the tokenizer files of the checkpoint."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if beyond:
        first = min(beyond, key=beyond.__getitem__)
        raise TokenizerMisfit(
            f"the tokenizer in {folder} does not fit the model: {len(beyond):,} of its {len(tokenizer):,} tokens lie "
            f"beyond the {rows:,} rows of the embedding, the first is {first!r}, id {beyond[first]:,}.\n"
            "Use the tokenizer the model was trained with. transformers appends <|endoftext|> where it is missing."
        )
    return tokenizer
