"""The checks of `python -m benchmarks.gpu_check`.

check.py     what a check is: a row of the table of checks, and the rows that it reports
running.py   runs checks, each in a process of its own, several side by side
runs.py      whole runs: Train.py as a user starts it, resuming, SIGTERM
steps.py     single steps: precisions and options, heads, optimisers, memory
together.py  the paths of several processes, over NCCL in one process
figures.py   evaluation and MegaFace against the CPU
speed.py     speed and memory, beside plain ways

A new check is a function and a row in its file's `CHECKS`; `benchmarks/gpu_check.py` joins these.
"""
