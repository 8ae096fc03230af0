"""The figures of a network: verification on pairs of photos, identification among many.

embedding.py          from images to a table of features; BatchNorm folded away
verification.py       10-fold accuracy of pairs of features, on arrays alone
one_kind.py           TAR or FAR alone, of pairs of one kind
centered_cosines.py   fast scores for choosing its thresholds
roc.py                ROC curve, AUC, TAR at a FAR, equal error rate, on arrays alone
inputs.py             what an evaluation starts from: data, network, output folder
report.py             a checkpoint on LFW, AgeDB-30, CFP-FP or any verification set
groups.py             figures of each group of pairs, and errors at one threshold for all
plots.py              pictures: ROC curves, histograms, sheets of the worst pairs
__main__.py           the command for any verification set
analysis/             from the scores of pairs: intervals, comparisons, thresholds of another set
compare_photos/       photographs to a score and an answer, and the command for it
identify/             the command that searches a gallery for a person

features.py           features of many photos: embedded, and kept on disk for a later start
identification/       ranks and rates of probes among distractors, on arrays alone
megaface/             MegaFace's photos, lists and devkit files to a report
tinyface/             TinyFace's official lists and rule to a report
ijb/                  IJB-B's and IJB-C's crops and lists to a report

all_pairs/            every pair of a labelled set: TAR down to FAR 1e-6, on arrays and to a report

label_noise.py        the command that finds images under a wrong name
clean_list.py         its report, and the command that leaves out the worst images
overlap/              people who are in a training set and in a test set
"""
