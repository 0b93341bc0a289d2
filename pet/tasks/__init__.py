"""Task cards and the texts they point at: cards, patterns, readers and writers of rows, splits. Knows no tokenizer and
no model."""
