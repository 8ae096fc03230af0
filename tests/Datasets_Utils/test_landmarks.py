"""Lists of landmarks: the forms that the field distributes, and what can't be read as one."""

import numpy as np
import pytest

from Utils.Datasets_Utils.alignment.landmarks.lists import read_landmarks
from Utils.errors import DataError

POINTS = np.array([(30.5, 40), (70, 41.25), (50, 60), (35, 80), (66, 81)])
FLAT = " ".join(f"{value:g}" for value in POINTS.ravel())
NAMES = "left_eye right_eye nose left_mouth right_mouth"
HEADER = ",".join(f"{name}_{axis}" for name in NAMES.split() for axis in "xy")
COMMAS = FLAT.replace(" ", ",")


def sixty_eight() -> str:
    """68 points whose five are POINTS: corners of an eye on either side of it."""
    points = np.random.default_rng(0).uniform(0, 100, (68, 2))
    points[[36, 39, 42, 45]] = POINTS[[0, 0, 1, 1]] + np.array([[-5, 1], [5, -1], [-6, 0], [6, 0]])
    points[[30, 48, 54]] = POINTS[2:]
    return " ".join(f"{value:.6f}" for value in points.ravel())


ALL_X, ALL_Y = (" ".join(f"{value:g}" for value in axis) for axis in POINTS.T)
X_68, Y_68 = (" ".join(sixty_eight().split()[axis::2]) for axis in (0, 1))

FORMS = {
    "five": f"a.jpg {FLAT}\nb.jpg {FLAT}\n",
    "tabs and a name with blanks": "\t".join(["a b, c.jpg", *FLAT.split()]) + "\n",
    "commas": f"a.jpg,{COMMAS}\n",
    "ijb": f"1.jpg {FLAT} 0.91\n2.jpg {FLAT} 1.0\n",
    "rfw": f"/test/data/African/m.01/m.01_0001.jpg\t3\t{FLAT}\n",
    "68": f"a.jpg {sixty_eight()}\n",
    "celeba": f"1\n{HEADER.replace(',', ' ').replace('left_', 'left')}\na.jpg  {FLAT}\n",
    "vggface2": f"NAME_ID,{','.join(f'P{i}{a}' for i in range(1, 6) for a in 'XY')}\n"
    f'"n01/01",{COMMAS}\n',
    "numbered from 0": f"{','.join(f'x_{i},y_{i}' for i in range(5))},file\n{COMMAS},a.jpg\n",
    "all x first": "file;x1;x2;x3;x4;x5;y1;y2;y3;y4;y5\na.jpg;"
    + ";".join(f"{value:g}" for value in POINTS.T.ravel())
    + "\n",
    "all x first, nameless": f"a.jpg {ALL_X} {ALL_Y}\nb.jpg {ALL_X} {ALL_Y}\n",
    "label, all x first": f"a.jpg 3 {ALL_X} {ALL_Y}\n",
    "68, all x first": f"a.jpg {X_68} {Y_68}\n",
    "named points and a box": f"file,x1,y1,x2,y2,{HEADER},confidence\n"
    f"a.jpg,1,2,99,98,{COMMAS},0.5\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_landmarks_are_read_in_every_public_form(form, tmp_path):
    (tmp_path / "list.txt").write_text(FORMS[form])
    found = read_landmarks(tmp_path / "list.txt")
    assert found.points[0] == pytest.approx(POINTS, abs=1e-5)
    scores = {"ijb": 0.91, "named points and a box": 0.5}
    assert found.scores[0] == pytest.approx(scores.get(form, np.nan), nan_ok=True)
    if form == "named points and a box":
        assert found.boxes[0].tolist() == [1, 2, 99, 98]
    if "blanks" in form:
        assert found.names == ["a b, c.jpg"]


MISTAKES = {
    "score or label": (f"a.jpg 0 {FLAT}\nb.jpg 0.5 {FLAT}\n", "neither the last is a score"),
    "other numbers": (f"a.jpg {FLAT} 5 6\n", "an image and 12 numbers"),
    "a line of another form": (f"a.jpg {FLAT}\nb.jpg 1 2\n", "line 2: 'b.jpg 1 2' is not"),
    "two columns for an eye": (
        f"file,{HEADER},left_eye_outer_x\na.jpg,{COMMAS},1\n",
        "left_eye_x and left_eye_outer_x may both be the left eye",
    ),
    "no point": ("file,label\na.jpg,1\n", "the five points"),
    "fields": (f"file,{HEADER}\na,b.jpg,{COMMAS}\n", "line 2: 12 fields, but its header"),
    "a word": (f"file,{HEADER}\na.jpg,{COMMAS.replace('60', 'x')}\n", "line 2: .*not a number"),
    # Backtracking once took minutes for this.
    "blanks": (f"a.jpg {FLAT}\nb.jpg{' ' * 4000}x\n", "line 2: .* is not"),
    "empty": ("", "is empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_could_be_read_in_two_ways_is_refused(mistake, tmp_path):
    text, said = MISTAKES[mistake]
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        read_landmarks(tmp_path / "list.txt")
