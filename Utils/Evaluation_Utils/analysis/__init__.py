"""What the scores of an evaluation tell beyond its figures, without network or photos.

kept_scores.py   the file of scores beside the results of pairs, and who is on the images
bootstrap.py     accuracy, TAR and means under resampling of pairs or subjects, on arrays alone
many_pairs.py    TAR of millions of pairs, and of open-set searches, in draws over subjects
intervals.py     95 % intervals, and two results on the same pairs compared
drawn.py         figures in draws, kept beside the results of other benchmarks, and compared
thresholds.py    a set at the thresholds that were found on another
quality.py       error-versus-discard curves, by feature norm or by a file of qualities
pictures.py      DET curves and error-versus-discard curves
further.py       all of these for pairs, as the settings ask for them
__main__.py      the command that makes the figures of pairs again from a file of scores
"""
