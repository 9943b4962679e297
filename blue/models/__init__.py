"""The decoder with its families, the encoder, LoRA, and what they cost."""
