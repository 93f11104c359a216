"""The formulas of `qwenlab.stats` on plain arrays: no names, no units, no files."""
