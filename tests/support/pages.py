"""The pages for users, and the Python code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = {page.name: page for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]}
BLOCKS = {  # the code of each page; that of CONTRIBUTING.md is built by test_yardstick.py
    name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for name, page in PAGES.items()
    if name != "CONTRIBUTING.md"
}
