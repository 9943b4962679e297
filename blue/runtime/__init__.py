"""Devices and processes: mesh, hosts, compiled programs, signals, hangs, traces."""
