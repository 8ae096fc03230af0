"""What mutated files are given to.

table          a reader, the table of readers, small files to begin with
datasets       images, record files, archives, databases
lists          lists, pairs, landmarks, reports of this project
weights        weights, checkpoints
results        features, scores, results and settings
hugging_face   data sets in arrow and parquet, networks of the hub
kept           what programs keep: indexes of data, tables, runs of sweeps
"""
