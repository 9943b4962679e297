"""The config of a run, and the files in its workdir."""
