# SPDX-License-Identifier: Apache-2.0
"""Completion of commands and flags in a shell."""

from __future__ import annotations

from typing import Literal

from rfjax.commands import command_line


def completion(shell: Literal["bash", "zsh", "fish"]) -> str:
    """Prints the script that lets a shell complete commands and flags.

    For one session of bash: source <(rfjax completion --shell=bash). For all: write the
    script to ~/.local/share/bash-completion/completions/rfjax, to a file _rfjax in a
    folder of zsh's fpath, or to ~/.config/fish/completions/rfjax.fish.

    Args:
      shell: bash, zsh or fish.

    Example:
      rfjax completion bash > ~/.local/share/bash-completion/completions/rfjax
    """
    return command_line.make_app().generate_completion(shell=shell)
