"""The data sets: images, and corpora of texts with their tokenizers and batches."""
