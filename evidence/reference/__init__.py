"""Reference results of two checkouts of qwenlab, compared bit for bit: what a refactoring must not change."""
