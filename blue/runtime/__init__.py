"""Where it runs: mesh, hosts, compiled programs, signals, hangs, traces."""
