"""Where things lie on this machine, as one value made by the CLI."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Workspace(msgspec.Struct, frozen=True, kw_only=True):
    """`root` is the checkout; `data` may lie elsewhere."""

    root: Path
    data: Path

    @property
    def submissions(self) -> Path:
        """Recipes."""
        return self.root / "submissions"

    @property
    def tracks(self) -> Path:
        """Tracks."""
        return self.root / "leaderboard" / "tracks"

    @property
    def records(self) -> Path:
        """Records, by track and recipe."""
        return self.root / "leaderboard" / "records"

    @property
    def replays(self) -> Path:
        """Outcomes of replays, by record."""
        return self.root / "leaderboard" / "replays"

    @property
    def reported(self) -> Path:
        """What others published."""
        return self.root / "leaderboard" / "reported.toml"

    @property
    def board(self) -> Path:
        """The generated board."""
        return self.root / "leaderboard" / "LEADERBOARD.md"

    @property
    def runs(self) -> Path:
        """Unfinished and finished runs' logs and checkpoints; not in git."""
        return self.root / ".runs"

    @property
    def compile_cache(self) -> Path:
        """What torch.compile keeps between runs."""
        return self.data / "compile"

    @property
    def proofs(self) -> Path:
        """Proofs made on this machine."""
        return self.data / "proofs"
