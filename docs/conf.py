"""The documentation as a site: the pages of docs/, and tables that are made in the build. It needs no network.

sphinx-build -W --keep-going -n -b html docs docs/_build
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parent.parent)]

import fedkd  # noqa: E402

project, author, release = "fedkd", "the authors of fedkd", fedkd.__version__
copyright = f"{author}, Apache-2.0"
html_title = f"fedkd {release}"
html_theme = "furo"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "mathml", "generated", "docstrings"]
html_math_renderer = "mathml"
highlight_language = "text"  # of blocks that name none: commands and what they print
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
# Names in annotations without a page here: other projects', whose lists would come over the network, and some of ours.
_OTHERS = r"(altair|collections|np|numpy|os|pandas|pathlib|torch|typing)\..*"
_OURS = r"fedkd\.(strategy\.S|config\.\w+)|ClientPartition|Round|Served|TrainedStudent|Verdict"
nitpick_ignore_regex = [(r"py:\w+", f"{_OTHERS}|{_OURS}")]
