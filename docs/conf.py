"""The site: `make docs` builds docs/_build/html. The pages are the Markdown files beside this one."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fastvar

project = "fastvar"
author = "the authors of fastvar"
version = release = fastvar.__version__
copyright = author

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "gallery", "*.tgz"]
suppress_warnings = ["toc.excluded"]
nitpicky = False
default_role = "py:obj"  # names in single backticks become links where the reference has them

FRAMEWORKS = {"torch.optim": "torch", "keras": "keras", "sklearn": "sklearn", "scipy": "scipy"}
exclude_patterns += [f"reference/{page}.rst" for page, name in FRAMEWORKS.items() if not find_spec(name)]

# Pages.
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3  # links such as formats.md#weights-in-16-bits
OUTSIDE = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changes": "CHANGELOG.md"}

# The reference.
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say it
autodoc_inherit_docstrings = False
autosummary_generate = True
autosummary_context = {  # classes whose pages also show what they have from classes that have no page
    "private_bases": [
        "fastvar.Optimizer",
        "fastvar.Variable",
        "fastvar.constraints.Constraint",
        "fastvar.initializers.Initializer",
        "fastvar.regularizers.Regularizer",
        "fastvar.schedules.LearningRateSchedule",
        "fastvar.torch.optim.KernelStep",
    ]
}
numpydoc_show_class_members = False
numpydoc_validation_checks = {"GL08", "PR07"}


# Examples that draw.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "generated/gallery",
    "filename_pattern": "plot_",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1,
    "write_computation_times": False,
    "within_subsection_order": "FileNameSortKey",
}

highlight_language = "none"  # of blocks that name none
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# HTML.
html_theme = "pydata_sphinx_theme"
html_title = "fastvar"
html_static_path = ["_static", "_build/mathjax"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_use_index = False
html_sidebars = {"index": []}
html_theme_options = {
    "navbar_align": "left",
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
mathjax_path = "tex-svg.js"  # `make docs` fetches it from npm


def pages_outside(app: Any, docname: str, source: list[str]) -> None:
    """Put the Markdown files of the repository's root into the site, with links as they are seen from docs/."""
    if docname in OUTSIDE:
        text = (Path(app.srcdir).parent / OUTSIDE[docname]).read_text()
        source[0] = text.replace("](docs/", "](") + source[0].partition("\n")[2]
    for page, file in OUTSIDE.items():
        source[0] = re.sub(rf"\]\((\.\./)?{re.escape(file)}", f"]({page}.md", source[0])


def skip_members(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out classes as attributes, and what a class has from a framework, whose manual has that."""
    of = getattr(getattr(member, "fget", member), "__module__", None) or "fastvar"
    return None if of.startswith("fastvar") and not isinstance(member, type) else True


def setup(app: Any) -> None:
    """Register what the configuration above cannot say."""
    app.connect("source-read", pages_outside)
    app.connect("autodoc-skip-member", skip_members)
