"""plots.py: that the pictures show what they should; how they look is judged by eye."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from Utils.errors import RunError
from Utils.Evaluation_Utils import plots
from Utils.Evaluation_Utils.compare_photos import pictures
from Utils.Evaluation_Utils.compare_photos.photos import Photo
from Utils.Evaluation_Utils.overlap.nearest import Scale
from Utils.Evaluation_Utils.overlap.report import Nearest, draw_scale
from Utils.Evaluation_Utils.plots import contact_sheet, plot_roc, plot_scores, side_by_side
from Utils.Evaluation_Utils.roc import roc_curve

RED, BLUE = (np.full((20, 16, 3), colour, np.uint8) for colour in ([250, 0, 0], [0, 0, 250]))


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def near(image, colour) -> int:
    return int((np.abs(image - colour).max(axis=2) < 12).sum())


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, kept as they are saved."""
    kept, save = [], plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda f, path: (kept.append(f), save(f, path)))
    return kept


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text"))]


def curve(negatives=300, seed=0):
    rng = np.random.default_rng(seed)
    same = np.arange(2 * negatives) < negatives
    return roc_curve(rng.normal(size=2 * negatives) + 2 * same, same)


def test_roc_picture(tmp_path, figures):
    first, second = curve(3000), curve(40, 1)
    plot_roc({"LFW": first, "my_set": second}, tmp_path / "sub" / "roc.png", "ROC of $x_1$")
    axes = figures[0].axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((1e-4, 1))
    assert axes.get_title() == "ROC of $x_1$"
    assert "FAR" in axes.get_xlabel()
    assert "TAR" in axes.get_ylabel()
    assert {"LFW", "my_set"} <= {text.split(" (AUC")[0] for text in texts(figures[0])}

    solid = axes.get_lines()[0]
    x, y = solid.get_data()
    assert x[0] == 1 / 3000  # nothing smaller was measured
    at_one_percent = y[np.flatnonzero(x <= 0.01)[-1]]
    assert at_one_percent == first.tar[first.far <= 0.01].max()
    assert axes.get_ylim()[0] <= min(y.min(), axes.get_lines()[2].get_ydata().min())
    assert pixels(tmp_path / "sub" / "roc.png").shape[0] > 400


def test_long_names_of_curves_are_not_cut_off(tmp_path, figures):
    names = ["norm divided out, no detector's score, image alone", *"abcdefg"]
    plot_roc({name: curve(40) for name in names}, tmp_path / "roc.png", "ROC")
    plot_roc({"LFW": curve(40), "CFP-FP": curve(40)}, tmp_path / "two.png", "ROC")
    for figure, columns in zip(figures, (1, 2), strict=True):
        legend = figure.legends[-1]
        places = [text.get_window_extent() for text in legend.get_texts()]
        assert min(place.x0 for place in places) > 0
        assert max(place.x1 for place in places) < figure.bbox.width
        assert len({place.x0 for place in places}) == columns


@pytest.mark.parametrize(("negatives", "start"), [(1, 0.1), (40, 0.01), (1000, 1e-3), (3500, 1e-4)])
def test_roc_axis_starts_at_the_decade_of_one_negative(tmp_path, figures, negatives, start):
    plot_roc({"a": curve(negatives)}, tmp_path / "roc.png", "ROC")
    assert figures[0].axes[0].get_xlim()[0] == pytest.approx(start)


def test_a_perfect_curve_is_in_view(tmp_path, figures):
    plot_roc({"a": roc_curve([0.0, 1.0], [False, True])}, tmp_path / "roc.png", "ROC")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 1 < high


def test_no_curves_are_refused(tmp_path):
    with pytest.raises(ValueError, match="curves is empty"):
        plot_roc({}, tmp_path / "roc.png", "ROC")


def test_score_picture(tmp_path, figures):
    rng = np.random.default_rng(0)
    same = np.arange(500) < 200
    scores = rng.normal(size=500) + 3 * same
    plot_scores(scores, same, 1.25, tmp_path / "scores.png", "Scores")
    axes = figures[0].axes[0]
    assert {"matched pairs: 200", "mismatched pairs: 300", "threshold: 1.25"} <= set(
        texts(figures[0])
    )
    assert axes.get_xlim()[0] <= scores.min() < scores.max() <= axes.get_xlim()[1]
    assert list(axes.get_lines()[0].get_xdata()) == [1.25, 1.25]
    assert "%" in axes.yaxis.get_major_formatter()(10)
    for patch, chosen in zip(axes.patches, (scores[~same], scores[same]), strict=True):
        edges = np.unique(patch.get_xy()[:, 0])
        counts, _ = np.histogram(chosen, edges)
        assert len(counts) == 60
        assert patch.get_xy()[:, 1].max() == pytest.approx(100 * counts.max() / len(chosen))
    assert pixels(tmp_path / "scores.png").std() > 10


def test_pictures_say_what_their_scores_are_of(tmp_path, figures, monkeypatch):
    monkeypatch.setattr(pictures, "save_figure", plots.save_figure)
    own, other = np.array([0.5, np.nan, 0.7], np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    scale = Scale(own, other, far=0.01, threshold=0.4, missed=0.0)
    draw_scale(Nearest(None, None, scale, None), tmp_path / "scores.png")
    assert {"own identity: 2", "nearest other identity: 3"} <= set(texts(figures[0]))
    photo = Photo("a.jpg", "a.jpg", RED, "")
    legend = "squared distance; framed: the same person"
    pictures.draw_matches(
        [(photo, "Ann", [(photo, "Ann\n0.4", True)])], legend, tmp_path / "found.png"
    )
    assert legend in texts(figures[1])


@pytest.mark.parametrize("same", [np.ones(4, bool), np.zeros(4, bool)])
def test_scores_of_one_kind_all_equal(tmp_path, same):
    plot_scores(np.zeros(4), same, 0.5, tmp_path / "scores.png", "Scores")
    assert pixels(tmp_path / "scores.png").std() > 0


def test_contact_sheet_shows_every_pair_under_its_heading(tmp_path, figures):
    caption = "score 0.7123\nAnn_0001\nBob_$0002$"
    sections = {"False matches": [(RED, BLUE, caption)] * 7, "False non-matches": []}
    contact_sheet(sections, tmp_path / "sheet.png", "Worst")
    shown = texts(figures[0])
    assert shown.count(caption) == 7
    assert {"Worst", "False matches", "False non-matches", "none"} <= set(shown)
    image = pixels(tmp_path / "sheet.png")
    red, blue = near(image, [250, 0, 0]), near(image, [0, 0, 250])
    assert red == pytest.approx(blue, rel=0.1)
    assert red > 7 * 100 * 80  # seven squares of more than an inch


def test_contact_sheet_texts_and_pictures_do_not_overlap(tmp_path, figures):
    long = "score 0.5\n" + "Anders_Fogh_" * 5
    sections = {"A": [(RED, BLUE[:10], long)] * 10, "B": [(RED, RED, long)] * 6}
    contact_sheet(sections, tmp_path / "sheet.png", "Worst")
    figure = figures[0]
    renderer = figure.canvas.get_renderer()
    captions = [text for axes in figure.axes for text in axes.texts]
    boxes = [text.get_window_extent(renderer) for text in [*captions, *figure.texts]]
    boxes += [axes.get_images()[0].get_window_extent(renderer) for axes in figure.axes]
    assert len(boxes) == 16 * 2 + 3
    page = figure.bbox
    for index, box in enumerate(boxes):
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_names_that_the_font_lacks_bring_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("成龙/成龙_0001.jpg", "हिन्दी", "Jos\udce9"):
            contact_sheet({name: [(RED, BLUE, name)]}, tmp_path / "x.png", name)
            plot_roc({name: curve()}, tmp_path / "roc.png", name)


def test_other_warnings_of_a_picture_are_not_hidden(tmp_path, monkeypatch):
    def draw(*_, **__):
        warnings.warn("something else", UserWarning, stacklevel=1)

    monkeypatch.setattr(FigureCanvasAgg, "print_figure", draw)
    with pytest.warns(UserWarning, match="something else"):
        plot_roc({"LFW": curve()}, tmp_path / "roc.png", "LFW")


def test_side_by_side_keeps_every_pixel():
    sheet = side_by_side(RED, BLUE[:10, :6])
    assert sheet.shape == (20, 16 + 4 + 6, 3)
    assert np.array_equal(sheet[:, :16], RED)
    assert np.array_equal(sheet[5:15, 20:], BLUE[:10, :6])
    assert (sheet[:, 16:20] == 255).all()
    with pytest.raises(ValueError, match=r"right image has shape \(3, 2, 2\)"):
        side_by_side(RED, np.zeros((3, 2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"left image .*float32"):
        side_by_side(RED.astype(np.float32), RED)


def test_a_picture_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "roc.png"
    path.write_bytes(b"the old one")

    def fail(canvas, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "print_figure", fail)
        with pytest.raises(RunError, match=r"roc.png can't be written \(disk full\)"):
            plot_roc({"a": curve()}, path, "ROC")
    assert path.read_bytes() == b"the old one"
    plot_roc({"a": curve()}, path, "ROC")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert [file.name for file in tmp_path.iterdir()] == ["roc.png"]
