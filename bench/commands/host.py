"""Commands about this machine: doctor."""

from __future__ import annotations

import argparse
import sys

from bench.commands.shared import before_torch, emit, workspace


def doctor(options: argparse.Namespace) -> int:
    """`bench doctor`."""
    before_torch(options)
    from bench.checkup.doctor import diagnose
    from bench.host.doctor import has_torch, table, with_more

    space = workspace(options)
    diagnosis = diagnose(space, options.device, options.environment, sys.path)
    if options.self_test and has_torch():
        from bench.checkup.self_test import self_test

        diagnosis = with_more(diagnosis, self_test(space, diagnosis.facts))
    if options.json:
        emit(diagnosis)
    else:
        print(table(diagnosis))
    return diagnosis.exit_code
