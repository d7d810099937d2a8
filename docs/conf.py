"""Settings of the documentation site, which `make docs` builds with warnings as errors and without a network.

The source folder is the repository's root, so a link means the same on the site as where the file lies: a link to a
Markdown page named below leads to that page, one to any other file to a copy of it.
"""

import adadecode

project = "AdaDecode"
author = "AdaDecode developers"
version = release = adadecode.__version__
html_title = f"AdaDecode {release}"

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "results/README.md", "results/reference/README.md", "cluster/README.md"]
exclude_patterns = [".*", "build", "adadecode", "ray_jobs", "tests"]
myst_heading_anchors = 3

html_theme = "furo"
html_show_copyright = False
html_copy_source = False
html_extra_path = ["site"]  # an index.html at the top, since every page is where its source is
