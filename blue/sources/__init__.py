"""Config and workdir become data, tokenizers and models."""
