"""Before a run: new task cards, label words, the linter and its estimate."""
