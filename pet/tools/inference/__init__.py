"""With a published run: predictions, and which texts to label next."""
