"""Models in and out: Hugging Face directories, PEFT, sentence-transformers, cards."""
