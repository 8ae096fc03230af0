"""Sweeps: one run for each combination of some settings' values.

runs.py     which runs are done; the process of each other run
results.py  the figures of the runs, with mean and spread over the seeds: table, files, picture
"""
