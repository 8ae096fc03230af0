"""Who is on a photograph: from photographs as they are to a score and an answer.

__main__.py   the command that compares photographs with each other
photos.py     the photographs that a command line names, as crops, and what was done with each
scoring.py    features, scores, and the threshold of an evaluation; the flags of both commands
pictures.py   the crops beside their scores

`identify`, the other command, searches for a person in a gallery.
"""
