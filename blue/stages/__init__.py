"""The stages of a run; `train_profiler` is the algorithm box."""
