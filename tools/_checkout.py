"""Puts the checkout that a tool lies in first on the import path, whatever is installed."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
