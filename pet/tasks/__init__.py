"""Task cards and the texts they point at: cards, patterns, readers and writers of rows, splits. No tokenizer, no model."""
