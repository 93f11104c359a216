"""Settings of Sphinx for `make docs`."""

import sys
from pathlib import Path

import qwenlab

sys.path.insert(0, str(Path(__file__).parent))

project = "qwenlab"
author = "The qwenlab authors"
copyright = author
release = qwenlab.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "plain_docstrings",
    "complete",
]
exclude_patterns = ["scheduling/*", "decisions/README.md"]
templates_path = ["_templates"]

# Pages in Markdown. Links go to pages, to headings, and to files outside docs/, which are copied.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

# A page for each package of docs/reference/index.md, of the names in its `__all__`.
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_member_order = "alphabetical"
autodoc_typehints = "signature"
autodoc_use_type_comments = False
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
default_role = "py:obj"
smartquotes = False  # quotes are often those of code
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"qwenlab {release}"
html_static_path = ["_static"]
html_css_files = ["reference.css"]
html_show_copyright = False
pygments_style = "friendly"
