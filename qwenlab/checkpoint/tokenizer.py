"""Load the tokenizer of a checkpoint and check it against the embedding."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwenlab.errors import TokenizerMismatch

# A tokenizer needs one of these sets of files; without them transformers builds an empty one and does not warn.
_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def load_tokenizer(folder: Path, rows: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder.

    Raises TokenizerMismatch if it is missing, or has token ids of `rows` (the number of rows of the embedding) or more.
    """
    if not any(all((folder / file).is_file() for file in files) for files in _FILES):
        raise TokenizerMismatch(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt.\n"
            "Download the tokenizer files of the checkpoint."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if beyond:
        first = min(beyond, key=beyond.__getitem__)
        raise TokenizerMismatch(
            f"The tokenizer in {folder} does not match the model: {len(beyond):,} of its {len(tokenizer):,} tokens "
            f"have ids beyond the {rows:,} rows of the embedding; the first is {first!r}, id {beyond[first]:,}.\n"
            "Use the tokenizer that the model was trained with. transformers adds <|endoftext|> if it is missing."
        )
    return tokenizer
