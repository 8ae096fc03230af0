"""The demo data: drawn faces, on which a fresh clone trains and is evaluated.

people.py   who is drawn, and under which conditions: random identities and photos
camera.py   the turned head in the picture, background, light and grain
faces.py    the outlines of a face; `draw_face`
sets.py     which images the sets consist of; `ensure_demo_sets` draws them into a folder, once
tinyface.py  its MegaFace again, as poor photos in the layout of TinyFace
"""
