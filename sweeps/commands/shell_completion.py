"""Completion for ``python -m sweeps`` in bash, written from the parser so that it can't drift.

    eval "$(python launch.py -sc install=bash)"       # Hydra's: groups, sweeps, keys
    eval "$(python -m sweeps completion)"             # this one, after it

bash knows one completion per command word, and both begin with ``python``: what is not
``-m sweeps`` is passed on to whatever was there before.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from rundir.commandline import commands_of
from rundir.files import MULTIRUN, PLAN_FILE, SWEEP_DIR

_SCRIPT = r"""
_optsweep_found=$(complete -p python 2>/dev/null | sed -n 's/.* -F \([^ ]*\) .*/\1/p')
[ "$_optsweep_found" != _optsweep ] && _optsweep_other=$_optsweep_found
_optsweep() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} legal='' sweep
  if [ "${COMP_WORDS[1]}" != -m ] || [ "${COMP_WORDS[2]}" != sweeps ]; then
    [ -n "$_optsweep_other" ] && "$_optsweep_other" "$@" && compopt -o nospace 2>/dev/null
    return
  fi
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 3 ]; then
    COMPREPLY=($(compgen -W '@COMMANDS@' -- "$word"))
    return
  fi
  case "$before" in
@VALUES@
  esac
  case "${COMP_WORDS[3]}" in
@OPTIONS@
  esac
  if [[ $word != -* && " @SWEEPING@ " == *" ${COMP_WORDS[3]} "* ]]; then
    for sweep in @MULTIRUN@/*/@SWEEP_DIR@; do
      [ -d "$sweep" ] && sweep=${sweep%/@SWEEP_DIR@} && legal+=" ${sweep##*/}"
    done
  fi
  local plan=@MULTIRUN@/${COMP_WORDS[4]}/@SWEEP_DIR@/@PLAN_FILE@ all=" ${COMP_WORDS[*]} "
  if [[ -f $plan && ( "${COMP_WORDS[3]} $COMP_CWORD" == "logs 5" || $all == *" --runs "* ) ]]; then
    legal+=" $(sed -n 's/^{"index": [0-9]*, "name": "\([^"]*\)".*/\1/p' "$plan")"
  fi
  COMPREPLY=($(compgen -W "$legal" -- "$word"))
}
complete -o bashdefault -o default -F _optsweep python python3
"""


def bash(parser: argparse.ArgumentParser, values: Mapping[str, Sequence[str]]) -> str:
    """Return the script that a shell evaluates.

    Args:
        parser: of the commands.
        values: the words that may follow an option.
    """
    # argparse has no public list of what it knows.
    commands = commands_of(parser)
    options = {
        name: [text for action in command._actions for text in action.option_strings]  # noqa: SLF001
        for name, command in commands.items()
    }
    filled = {
        "COMMANDS": " ".join(commands),
        "VALUES": "\n".join(
            f"    {option}) COMPREPLY=($(compgen -W '{' '.join(legal)}' -- \"$word\")); return ;;"
            for option, legal in values.items()
        ),
        "OPTIONS": "\n".join(f"    {n}) legal='{' '.join(o)}' ;;" for n, o in options.items()),
        "SWEEPING": " ".join(
            name
            for name, command in commands.items()
            if any(a.dest == "sweep" for a in command._actions)  # noqa: SLF001
        ),
        "MULTIRUN": MULTIRUN,
        "SWEEP_DIR": SWEEP_DIR,
        "PLAN_FILE": PLAN_FILE,
    }
    script = _SCRIPT
    for name, text in filled.items():
        script = script.replace(f"@{name}@", text)
    return script
