"""How the lineage does each job: what `benchmarks/run.py` compares with.

Written anew from what those repositories do (QuasarLight, wujiyang and their kin), not from their
text. Results are equal to ours (`tests/test_benchmarks.py`); time and memory are not.
"""
