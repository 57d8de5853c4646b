"""Coverage-guided fuzzing of every parser, and the corpus that the ordinary tests replay."""

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
