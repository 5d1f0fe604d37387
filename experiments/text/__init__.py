"""Text as the experiments use it: corpora, tokenizers, batches and scores."""
