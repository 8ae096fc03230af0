"""A person on a photograph among those of a gallery.

__main__.py   the command; all it uses is in `compare_photos`
"""
