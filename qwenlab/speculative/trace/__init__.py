"""Record the drafts at every place of a text, and replay from them the rounds of any depth and policy."""
