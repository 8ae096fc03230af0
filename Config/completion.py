"""Tab completion of a script's flags and their words, in bash and zsh.

The shell reads a text that was printed once, because Python would take seconds at each press of
Tab: the settings import PyTorch, whose networks' names they know.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path

# The function of a script prints the words that may follow another word. Of several scripts in a
# line, as after torchrun, the last one counts. bash takes = for a word of its own.
_SHELL = r"""
[ -n "$ZSH_VERSION" ] && autoload -U +X compinit bashcompinit && compinit -u && bashcompinit
_face_complete() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" script="" name i
    [ "$before" = = ] && before="${COMP_WORDS[COMP_CWORD-2]}"
    [ "$word" = = ] && word=""
    for ((i = 1; i < COMP_CWORD; i++)); do
        name="${COMP_WORDS[i]##*/}"
        name="_face_words_${name//[^A-Za-z0-9]/_}"
        typeset -f "$name" > /dev/null && script="$name"
    done
    COMPREPLY=()
    [ -n "$script" ] && COMPREPLY=($(compgen -W "$("$script" "$before")" -- "$word"))
}
complete -o bashdefault -o default -F _face_complete python python3 torchrun
"""


class PrintCompletion(argparse.Action):
    """Prints the completion of the parser that it is a flag of, and ends the process."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(_function_of(parser) + _SHELL, end="")
        parser.exit()


def _function_of(parser: argparse.ArgumentParser) -> str:
    """The shell function of the script that runs, with its flags and their words."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m`
    name = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    cases, free, every = [], [], []
    for action in parser._actions:
        every += action.option_strings
        if action.choices and action.option_strings:
            words = shlex.quote(" ".join(filter(None, action.choices)))
            cases.append(f"        {'|'.join(action.option_strings)}) echo {words} ;;")
        elif action.nargs != 0:
            free += action.option_strings
    cases.append(f"        {'|'.join(free)}) ;;")  # files
    cases.append(f"        *) echo {shlex.quote(' '.join(every))} ;;")
    function = f"_face_words_{re.sub('[^A-Za-z0-9]', '_', name)}"
    return "\n".join((f"{function}() {{", '    case "$1" in', *cases, "    esac", "}", ""))
