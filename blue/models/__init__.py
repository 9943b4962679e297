"""The decoder with its families, the encoder, LoRA, and their FLOPs."""
