"""What mutated files are given to.

table      a reader, the table of readers, small files to begin with
datasets   images, record files, archives, databases
lists      lists, pairs, landmarks, reports of this project
weights    weights, checkpoints
results    features, scores, results and settings
"""
