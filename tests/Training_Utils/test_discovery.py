"""Finding names: the tables of `--list`, and Tab completion in a real bash."""

import shutil
import subprocess

import pytest

from Backbone import BACKBONES
from Config import RECIPES, Config, read_training
from Config.fields import settings_of
from Head import HEADS
from tests.conftest import run_script
from Utils.Pretrained_Utils.lineages import LINEAGES
from Utils.Training_Utils.discovery import ROWS, TABLES, described

EVERY = [(table, *row) for table, rows in ROWS.items() for row in rows()]


@pytest.mark.parametrize(("table", "name", "about", "source"), EVERY)
def test_every_row_has_a_description_and_a_source(table, name, about, source):
    assert 5 < len(about) < 120, f"{name} in {table} needs a short description beside it"
    assert "." in source or source in ("this project", "POSIX ustar and pax; PKWARE's APPNOTE")


def test_a_class_without_its_own_docstring_has_no_description():
    class Silent(HEADS["ArcFace"].method):
        pass

    assert described(Silent)[0] == ""


def test_kp_rpe_has_the_source_of_its_own():
    sources = {name: source for name, _, source in ROWS["backbones"]()}
    assert sources["ViT_S_KPRPE"] == "https://arxiv.org/abs/2403.14852" != sources["ViT_S"]


@pytest.mark.parametrize("table", ROWS)
def test_a_table_has_every_name_and_fits_a_terminal(table, capsys):
    with pytest.raises(SystemExit) as end:
        read_training("", ["--list", table], tables=TABLES)
    assert end.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    first = {line.split()[0] for line in lines if not line.startswith(" ")}
    keys = {"backbones": BACKBONES, "heads": HEADS, "recipes": RECIPES}
    keys["lineages"] = [lineage.key for lineage in LINEAGES]
    assert first >= set(keys.get(table, ()))


def test_another_table_is_refused_with_their_names(capsys):
    with pytest.raises(SystemExit):
        read_training("", ["--list", "datasets"], tables=TABLES)
    said = capsys.readouterr().err
    assert all(table in said for table in TABLES)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash offers for a line whose last word is being typed."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    file = tmp_path_factory.mktemp("completion") / "completion.sh"
    scripts = (["Train.py"], ["LFW_Evaluation.py"], ["-m", "Utils.Evaluation_Utils.overlap"])
    printed = [run_script(*words, "--print_completion", check=True).stdout for words in scripts]
    file.write_text("".join(printed))

    def offered(*words: str) -> list[str]:
        program = (
            f'source {file}; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
            "_face_complete; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        command = ["bash", "--norc", "-c", program, "bash", "skipped", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout.split()

    return offered


LINES = {
    ("python", "Train.py", "--backb"): ["--backbone"],
    ("python", "Train.py", "--backbone", "ResNet10"): ["ResNet100_IR", "ResNet101"],
    ("python", "Train.py", "--margin", "=", "Cos"): ["CosFace"],
    ("python", "Train.py", "--use_am"): ["--use_amp"],
    ("python", "Train.py", "--no-use_am"): ["--no-use_amp"],
    ("python", "Train.py", "--use_amp", "--recipe", "ms"): ["ms_celeb_1m"],
    ("python", "Train.py", "--list", "f"): ["formats"],
    ("python", "Train.py", "--save_dir", ""): [],  # bash offers files
    ("torchrun", "--nproc_per_node", "2", "../x/Train.py", "--sched"): ["--schedule"],
    ("python", "LFW_Evaluation.py", "--protocol", "i"): ["insightface"],
    ("python", "LFW_Evaluation.py", "--margi"): [],  # no setting of this script
    ("python", "-m", "Utils.Evaluation_Utils.overlap", "--checkp"): ["--checkpoint"],
    ("python", "other.py", "--backb"): [],
}


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_bash_completes_flags_and_their_words(complete, line):
    assert complete(*line) == LINES[line]


def test_every_setting_of_training_is_offered(complete):
    wanted = {f"--{s.name}" for s in settings_of(Config).values() if "training" in s.scripts}
    assert wanted <= set(complete("python", "Train.py", ""))
