"""The demo data: drawn faces, on which a fresh clone trains and is evaluated.

people.py   who is drawn, and under which conditions: random identities and photos
camera.py   the turned head in the picture, background, light and grain
faces.py    the outlines of a face; `draw_face`
sets.py     which images the sets consist of; `ensure_demo_sets` draws them into a folder, once
pairs.py    the pairs of people of its verification sets
on_disk.py  writing an image, and a set that is made when it is asked for
tinyface.py  its MegaFace again, as poor photos in the layout of TinyFace
loose.py    photos as a camera took them, not aligned, with five points and a detector's score
ijb.py      templates of stills and clips, in the layout of IJB-C
rfw.py      four groups of people, in the layout of RFW
"""
