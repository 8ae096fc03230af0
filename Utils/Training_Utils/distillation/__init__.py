"""A trained network as the teacher of the one that is trained, its student.

loss.py     how far the student's embeddings are from the teacher's, and the layer between sizes
teacher.py  the teacher: reads the network, and gives a step its embeddings
table.py    all embeddings of a training set on disk, where augmentation only mirrors the images
"""
