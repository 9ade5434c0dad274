#!/bin/sh
# The image's entry: any bench command; without one, what this machine is, a first run, and the board.
set -eu
if [ "$#" -gt 0 ]; then
    exec python -m bench "$@"
fi
python -m bench doctor
python -m bench launch submissions/quick.toml
exec cat leaderboard/LEADERBOARD.md
